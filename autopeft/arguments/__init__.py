"""One declaration for one option: arguments of a public function, its signature and docstring, the options of
its command, what a manifest records, and the command line that repeats a run.

```python
class GreetArguments(Arguments):
    called: ClassVar[str] = "greet"
    times: Annotated[int, Option(help="How often.", least=1)] = 1


@takes(GreetArguments)
def greet(given: GreetArguments) -> None: ...


greet(times=3)  # typed, documented and checked
```
"""

from __future__ import annotations

from autopeft.arguments.base import NEEDED, Arguments
from autopeft.arguments.call import docstring_of, signature_of, takes
from autopeft.arguments.command_line import command_line
from autopeft.arguments.option import Option

__all__ = ["NEEDED", "Arguments", "Option", "command_line", "docstring_of", "signature_of", "takes"]
