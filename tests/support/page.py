"""A page of HTML as a browser would take it apart."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Elements with attributes, texts by element, and the content of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._kind: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attrs}
        self.elements.append((tag, found))
        if tag in ("script", "style"):
            self._kind = found.get("type", "") if tag == "script" else "style"
            self.scripts.append((self._kind, ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._kind = None

    def handle_data(self, data: str) -> None:
        if self._kind is None:
            self.texts.append(data)
        else:
            kind, text = self.scripts[-1]
            self.scripts[-1] = (kind, text + data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def ids(self) -> list[str]:
        return [a["id"] for _, a in self.elements if "id" in a]
