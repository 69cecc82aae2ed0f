// The page: which view is shown, and the state that it shows.

import { render } from './preact.js';
import { Explain } from './explain.js';
import { Feed } from './feed.js';
import { count } from './format.js';
import { LINE_SECONDS, html, rowsOf } from './parts.js';
import { VIEWS } from './views.js';

/** Rows of a page. */
const LIMIT = 50;
/** How long the page waits for more letters of a search. */
const TYPING_MS = 300;

const STATUS = {
  connecting: 'Connecting …',
  live: 'Live',
  paused: 'Paused',
  lost: 'Connection lost. Trying again.',
  refused: 'The router serves no further page now, or does not answer. Trying again.',
};

const feed = new Feed(onChange);
/** Rates of the last minute, by table and row. */
const lines = new Map();
let query = readAddress();
let isPaused = false;
let explained = null;
let announced = '';
let isSearchNew = false;
let typing;

function currentView() {
  return VIEWS.find((view) => view.name === query.view);
}

/** Reads the view and its page from the address: #/flows?search=camera. */
function readAddress() {
  const [path, parameters] = location.hash.replace(/^#\/?/, '').split('?');
  const view = VIEWS.find((known) => known.name === path) ?? VIEWS[0];
  const given = new URLSearchParams(parameters ?? '');
  return {
    view: view.name,
    search: given.get('search') ?? '',
    order: given.get('order') ?? view.order ?? '',
    offset: Number(given.get('offset')) || 0,
    limit: LIMIT,
  };
}

function writeAddress() {
  const { view, search, order, offset } = query;
  const parameters = new URLSearchParams();
  if (search) parameters.set('search', search);
  if (order && order !== currentView().order) parameters.set('order', order);
  if (offset) parameters.set('offset', offset);
  const text = parameters.toString();
  history.replaceState(null, '', `#/${view}${text ? `?${text}` : ''}`);
}

function openFeed() {
  if (isPaused || document.hidden) feed.close();
  else feed.open(query);
}

/** Changes the search, the order or the page. */
function onQuery(change) {
  query = { ...query, ...change };
  isSearchNew ||= 'search' in change;
  writeAddress();
  clearTimeout(typing);
  typing = setTimeout(openFeed, 'search' in change ? TYPING_MS : 0);
  draw();
}

function onChange() {
  const { name, table: searched = name } = currentView();
  const table = feed.state?.tables?.[searched];
  if (isSearchNew && feed.status === 'live' && table) {
    isSearchNew = false;
    announced = table.total === 1 ? '1 row matches' : `${count(table.total)} rows match`;
  }
  draw();
}

/** Shows the view of the address. */
function navigate() {
  const former = query.view;
  query = readAddress();
  if (query.view !== former) {
    feed.state = feed.state && { router: feed.state.router };
    lines.clear();
    announced = '';
  }
  openFeed();
  draw();
  document.title = `${currentView().title} – mcastor`;
  if (query.view !== former) document.getElementById('title')?.focus();
}

const totals = () => {
  const sum = (name) => {
    const rates = rowsOf(feed.state?.tables?.interfaces).map(([, row]) => row.rates?.[name]);
    return rates.every((rate) => rate === undefined) ? undefined : rates.reduce((a, b) => a + (b ?? 0), 0);
  };
  return { received: sum('received_packets'), sent: sum('transmitted_packets') };
};

/** Adds the present rates to the lines. Rows that are not shown lose theirs. */
function sample() {
  if (feed.status !== 'live' || isPaused || document.hidden || !feed.state) return;
  const present = new Map();
  const { received, sent } = totals();
  if (received !== undefined) present.set('received', received).set('sent', sent);
  for (const [name, table] of Object.entries(feed.state.tables ?? {})) {
    for (const [key, row] of rowsOf(table)) {
      const measured = row?.ingress?.rate?.bits_per_second;
      if (measured !== undefined) present.set(`${name} ${key}`, measured);
      if (!row?.rates) continue;
      const { received_packets: inward, transmitted_packets: outward, bits, bytes } = row.rates;
      if (inward === undefined) present.set(`${name} ${key}`, bits ?? bytes ?? row.rates.packets);
      else present.set(`${name} ${key} in`, inward).set(`${name} ${key} out`, outward);
    }
  }
  for (const name of lines.keys()) if (!present.has(name)) lines.delete(name);
  for (const [name, rate] of present) lines.set(name, [...(lines.get(name) ?? []), rate].slice(-LINE_SECONDS));
  draw();
}

function pause() {
  isPaused = !isPaused;
  openFeed();
  draw();
}

function skip(event) {
  event.preventDefault();
  document.getElementById('title').focus();
}

function Page() {
  const data = feed.state ?? {};
  const view = currentView();
  const status = isPaused ? 'paused' : feed.status;
  const host = data.router?.host;
  const page = { data, query, onQuery, lines, totals: totals(), onExplain: (packet) => { explained = packet; draw(); } };
  return html`
    <a class="skip" href="#title" onClick=${skip}>Skip to the content</a>
    <header>
      <h1>mcastor${host ? ` on ${host}` : ''}</h1>
      <p role="status" class=${`status ${status === 'live' ? 'good' : status === 'paused' ? '' : 'warn'}`}>
        ${STATUS[status]}<span class="hidden"> ${announced}</span></p>
      <button type="button" aria-pressed=${isPaused ? 'true' : 'false'} onClick=${pause}>Pause</button>
    </header>
    <nav aria-label="Views"><ul>
      ${VIEWS.map(({ name, title }) => html`<li><a href=${`#/${name}`}
        aria-current=${name === view.name ? 'page' : undefined}>${title}</a></li>`)}
    </ul></nav>
    <main>
      <h2 id="title" tabindex="-1">${view.title}</h2>
      ${data.error ? html`<p class="box warn">${data.error}</p>` : null}
      ${view.content(page)}
    </main>
    <footer>mcastor ${data.router?.version}. The same data: <code>mcastor show</code>,
      ${' '}<a href="api/v1/openapi.json">/api/v1</a>, <a href="metrics">/metrics</a>.</footer>
    ${explained ? html`<${Explain} packet=${explained} onClose=${() => { explained = null; draw(); }} />` : null}`;
}

let isDrawing = false;

/** Draws the page once before the next picture. */
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    render(html`<${Page} />`, document.getElementById('page'));
  });
}

addEventListener('hashchange', navigate);
document.addEventListener('visibilitychange', openFeed);
setInterval(sample, 1000);
navigate();
