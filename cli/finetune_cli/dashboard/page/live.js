// The stream of changes, opened anew whenever it breaks. The server tells everything first, then what changes; after a
// break it goes on from there, if it still can.

const SILENT_MILLISECONDS = 30_000; // three beats of the server
const AGAIN_MILLISECONDS = 2_000;
const HIDDEN_MILLISECONDS = 60_000; // a browser has 6 connections for one server, and a hidden page needs none

/**
 * Follow the server for as long as the page is there.
 * @param {(changes: object) => void} onChanges A message of `changes`.
 * @param {(since: number | null) => void} onConnection When the server was last heard (null: never) if it is lost; else
 *   undefined.
 */
export function follow(onChanges, onConnection) {
  let source = null;
  let last = "";
  let heard = null;
  let watchdog = 0;
  let hiding = 0;

  function open() {
    close();
    source = new EventSource(`events?last=${encodeURIComponent(last)}`);
    source.addEventListener("changes", (event) => {
      last = event.lastEventId;
      hear();
      onChanges(JSON.parse(event.data));
    });
    source.addEventListener("beat", hear);
    // Whether the browser would try again by itself depends on what went wrong; so it is always done here.
    source.addEventListener("error", lose);
    watch();
  }

  function close() {
    source?.close();
    source = null;
    clearTimeout(watchdog);
  }

  function hear() {
    heard = Date.now();
    onConnection(undefined);
    watch();
  }

  function watch() {
    clearTimeout(watchdog);
    watchdog = setTimeout(lose, SILENT_MILLISECONDS);
  }

  function lose() {
    close();
    onConnection(heard);
    watchdog = setTimeout(open, AGAIN_MILLISECONDS);
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(close, HIDDEN_MILLISECONDS);
    else if (!source) open();
  });
  open();
}
