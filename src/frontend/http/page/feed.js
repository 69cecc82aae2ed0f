// The state of a view: a JSON document that events change (merge patches, RFC 7396).

/** How long the page waits before it says that the connection is lost. */
const PATIENCE_MS = 4000;
/** How long it waits after the router refused a stream. */
const PAUSE_MS = 5000;

/** Applies a merge patch, and returns the result. Objects have no prototype: the network chooses
 * the names of properties. */
export function merge(target, patch) {
  if (patch === null || typeof patch !== 'object' || Array.isArray(patch)) return patch;
  if (target === null || typeof target !== 'object' || Array.isArray(target)) {
    target = Object.create(null);
  }
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) delete target[name];
    else target[name] = merge(target[name], value);
  }
  return target;
}

/** Notes when the rows of a patch arrived, because their durations are as of then. */
function stampRows(state, patch) {
  for (const [name, table] of Object.entries(patch.tables ?? {})) {
    for (const key of Object.keys(table?.rows ?? {})) {
      const row = state.tables[name]?.rows?.[key];
      if (row) row.receivedAt = Date.now();
    }
  }
}

/** One event stream at a time. `onChange` is called after each change of `state` and `status`. */
export class Feed {
  constructor(onChange) {
    this.onChange = onChange;
    this.state = null;
    this.status = 'connecting';
  }

  /** Shows another view, or another page of it. */
  open(query) {
    this.close();
    this.query = query;
    const source = new EventSource(`api/v1/events?${new URLSearchParams(query)}`);
    this.source = source;
    let isFirst = true;
    source.onopen = () => {
      isFirst = true;
    };
    source.onmessage = (event) => {
      const patch = JSON.parse(event.data);
      this.state = merge(isFirst ? null : this.state, patch);
      isFirst = false;
      stampRows(this.state, patch);
      clearTimeout(this.lost);
      this.lost = undefined;
      this.setStatus('live');
    };
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) {
        this.setStatus('refused');
        this.retry = setTimeout(() => this.open(this.query), PAUSE_MS);
      } else {
        // A stream ends after a while, and the browser opens another one at once.
        this.lost ??= setTimeout(() => this.setStatus('lost'), PATIENCE_MS);
      }
    };
  }

  close() {
    clearTimeout(this.lost);
    clearTimeout(this.retry);
    this.lost = undefined;
    this.source?.close();
    this.source = undefined;
  }

  setStatus(status) {
    this.status = status;
    this.onChange();
  }
}
