/* A page that was opened from disk may start no worker, and the search of the theme runs in one. Here it runs in a hidden
   frame, which has a worker's two ways to speak. */
(() => {
  if (window.location.protocol !== "file:") return
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true, title: "search" })
      document.body.append(this.frame)
      const inner = this.frame.contentWindow
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inner.document.createElement("script")
      script.src = url
      script.onload = () => {
        const sent = this.waiting
        this.waiting = null
        sent.forEach((data) => this.postMessage(data))
      }
      inner.document.body.append(script)
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else {
        const inner = this.frame.contentWindow
        inner.dispatchEvent(new inner.MessageEvent("message", { data }))
      }
    }
    terminate() {
      this.frame.remove()
    }
  }
})()
