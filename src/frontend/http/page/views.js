// What the page shows of each view.

import { DataTable, Pages, RateLine, Tools, html, rowsOf } from './parts.js';
import { ago, bitRate, bytes, count, duration, list, perSecond, stream } from './format.js';

const PLANES = {
  ebpf: 'The kernel forwards known flows (plane ebpf).',
  packet: 'This process forwards each packet (plane packet).',
};

const number = { class: 'number' };

const explainButton = (label, packet, { onExplain }) =>
  html`<button type="button" onClick=${() => onExplain(packet)}
    aria-label=${`Explain ${label}`}>Explain</button>`;

/** Explains a flow as it arrives, or the last packet of a drop. */
const explain = (row, page) => {
  if (!row.source || !row.group) return '–';
  const packet = { source: row.source, group: row.group };
  if (row.iif) packet.iif = row.iif;
  for (const name of ['port', 'ttl']) if (row[name] !== undefined) packet[name] = row[name];
  if (row.size >= 48 && row.size < 65536) packet.size = row.size;
  return explainButton(stream(row), packet, page);
};

const state = (text, kind) => html`<span class=${kind}>${text}</span>`;

// Interfaces.

function linkState(row) {
  if (row.disabled) return state('disabled in the settings', 'quiet');
  if (!row.up) return state('down', 'bad');
  return row.carrier ? state('up', 'good') : state('no carrier', 'bad');
}

function roles(row) {
  const roles = [];
  if (row.ingress) roles.push('receives');
  if (row.egress) roles.push('sends');
  if (row.downstream_of) roles.push(`serves members of ${row.downstream_of}`);
  for (const proxy of row.upstream_of ?? []) roles.push(`upstream of ${proxy}`);
  return list(roles);
}

const droppedOf = (row) => Object.values(row.dropped_packets ?? {}).reduce((a, b) => a + b, 0);

function dropped(row) {
  const reasons = Object.entries(row.dropped_packets ?? {});
  const lost = row.socket_dropped_packets
    ? html`<div class="bad">${count(row.socket_dropped_packets)} lost, because mcastor read too slowly</div>` : null;
  return html`${count(droppedOf(row))}
    ${reasons.map(([reason, packets]) => html`<div class="quiet">${reason}: ${count(packets)}</div>`)}${lost}`;
}

function interfaceNotes(row) {
  const notes = (row.subnet_conflicts ?? []).map((text) => state(text, 'warn'));
  for (const querier of row.queriers ?? []) {
    const who = querier.us ? 'this router' : querier.address ?? 'none yet';
    notes.push(`${querier.protocol.toUpperCase()} querier: ${who}`);
  }
  if (row.bandwidth) {
    const { admitted, limit, refused } = row.bandwidth;
    const text = `${bitRate(admitted)} of at most ${bitRate(limit)}`;
    notes.push(refused ? state(`${text}; ${refused} streams refused`, 'warn') : text);
  }
  for (const [reason, messages] of Object.entries(row.refused_messages ?? {})) {
    notes.push(`${count(messages)} messages refused: ${reason}`);
  }
  return notes.length ? notes.map((note) => html`<div>${note}</div>`) : '–';
}

const interfaceColumns = ({ lines }) => [
  { title: 'Interface', order: 'name', cell: (row) => row.name },
  { title: 'State', cell: linkState },
  { title: 'Role', cell: roles },
  { ...number, title: 'Received', order: '-rates.received_packets', cell: (row, key) => html`
    ${perSecond(row.rates?.received_packets)}<${RateLine} values=${lines.get(`interfaces ${key} in`)} />
    <div class="quiet">${count(row.received_packets)} in all</div>` },
  { ...number, title: 'Sent', order: '-rates.transmitted_packets', cell: (row, key) => html`
    ${perSecond(row.rates?.transmitted_packets)}<${RateLine} values=${lines.get(`interfaces ${key} out`)} />
    <div class="quiet">${count(row.transmitted_packets)} in all</div>` },
  { ...number, title: 'Dropped', cell: dropped },
  { title: 'Notes', cell: interfaceNotes },
];

// Routes.

const translation = ({ source, group, port }) =>
  list([source && `source ${source}`, group && `group ${group}`, port && `port ${port}`].filter(Boolean));

const routeColumns = ({ lines }) => [
  { title: 'Route', order: 'name', cell: (row) => html`${row.name}
    <div class="quiet">${row.origin === 'command' ? 'added by command' : row.origin === 'proxy' ? 'proxy' : 'from the settings'}</div>` },
  { title: 'Stream', order: 'group', cell: (row) => html`${stream(row)}
    ${row.except_sources?.length ? html`<div class="quiet">but not ${list(row.except_sources)}</div>` : null}` },
  { title: 'From', order: 'from', cell: (row) => row.from },
  { title: 'To', cell: (row) => (row.to.length ? list(row.to) : 'nowhere: drops what it matches') },
  { ...number, title: 'Rate', order: '-rates.bytes', cell: (row, key) => html`
    ${bitRate(row.rates && row.rates.bytes * 8)}<${RateLine} values=${lines.get(`routes ${key}`)} />
    <div class="quiet">${perSecond(row.rates?.packets)}</div>` },
  { ...number, title: 'Packets sent', order: '-packets', cell: (row) => html`${count(row.packets)}
    <div class="quiet">${bytes(row.bytes)}</div>` },
  { title: 'Notes', cell: (row) => html`TTL: ${row.ttl}
    ${row.rewrite ? html`<div>New ${translation(row.rewrite)}</div>` : null}
    ${row.waiting_for?.length ? html`<div class="warn">waits for ${list(row.waiting_for)}</div>` : null}` },
];

const pendingColumns = [
  { title: 'Name', cell: (row) => `${row.kind} ${row.name}` },
  { title: 'Waits for', cell: (row) => list(row.waiting_for) },
  { title: 'Hint', cell: (row) => list(row.hints) },
];

// Flows.

function flowState(row) {
  if (row.dropped) return state('dropped', 'bad');
  if (!row.active) return state('standby: another interface is active', 'quiet');
  if (!row.oifs.length) return state('no route now', 'warn');
  const yields = Object.entries(row.yields ?? {});
  return yields.length
    ? state(`left to another router on ${list(yields.map(([name, mac]) => `${name} (${mac})`))}`, 'warn')
    : state('forwarded', 'good');
}

const flowColumns = (page) => [
  { title: 'Stream', order: 'address', isFixed: true, isAscending: true, cell: stream },
  { title: 'Path', cell: (row) => `${row.iif} to ${list(row.oifs)}` },
  { title: 'Route', cell: (row) => row.route ?? '–' },
  { title: 'State', cell: (row) => html`${flowState(row)}
    ${row.plane ? html`<div class="quiet">by ${row.plane === 'ebpf' ? 'the kernel' : 'the process'} (${row.plane})${row.declined ? `: ${row.declined}` : ''}</div>` : null}` },
  { ...number, title: 'Rate', order: 'rate', isFixed: true, cell: (row, key) => html`
    ${bitRate(row.rates?.bits)}<${RateLine} values=${page.lines.get(`flows ${key}`)} />
    <div class="quiet">${perSecond(row.rates?.packets)}</div>` },
  { ...number, title: 'Packets', order: 'packets', isFixed: true, cell: (row) => count(row.packets) },
  { ...number, title: 'Bytes', order: 'bytes', isFixed: true, cell: (row) => bytes(row.bytes) },
  { title: 'Last packet', order: 'recent', isFixed: true, cell: (row) => ago(row, row.idle_ms) },
  { title: 'Why', cell: (row) => explain(row, page) },
];

// Streams.

const VERDICTS = {
  fine: ['fine', 'good'],
  silent: ['silent', 'bad'],
  lost_before: ['lost before us', 'warn'],
  lost_here: ['lost here', 'bad'],
  lost_before_and_here: ['lost before us and here', 'bad'],
  faulty: ['faulty as it arrives', 'warn'],
};

const KINDS = { rtp: 'RTP', rtp_ts: 'MPEG-TS in RTP', ts: 'MPEG-TS', sequence: 'sequence numbers', rate: 'rate only', unknown: 'not recognised yet' };

const ms = (us) => `${(us / 1000).toFixed(us < 10000 ? 1 : 0)} ms`;

function lostHere(row) {
  const reasons = Object.entries(row.lost_here ?? {});
  if (!reasons.length) return '0';
  return reasons.map(([reason, lost]) => html`<div>${reason}: ${count(lost.minute)} <span class="quiet">(${count(lost.total)} in all)</span></div>`);
}

/** What the contents of a stream say, one line for each kind of figure. */
function contents({ rtp, sequence, mdi, ts, inter_arrival: gaps }) {
  const found = [];
  const numbers = rtp?.sequence ?? sequence;
  if (numbers) found.push(`${count(numbers.reordered)} reordered, ${count(numbers.duplicates)} doubled`);
  if (rtp?.jitter_us !== undefined) found.push(`jitter ${ms(rtp.jitter_us)}`);
  if (gaps) found.push(`between packets ${ms(gaps.p50_us)}, 99 %: ${ms(gaps.p99_us)}, longest ${ms(gaps.max_us)}`);
  if (mdi) found.push(`MDI ${ms(mdi.delay_factor_us)}:${count(mdi.media_loss_rate)}`);
  if (ts) {
    found.push(`${count(ts.continuity_errors)} continuity errors, ${ts.pat_present ? 'PAT' : 'no PAT'}, ${ts.pmt_present ? 'PMT' : 'no PMT'}${ts.scrambled ? ', scrambled' : ''}`);
    if (ts.pcr_jitter_us !== undefined) found.push(`PCR jitter ${ms(ts.pcr_jitter_us)}`);
  }
  return found.length ? found.map((text) => html`<div class="quiet">${text}</div>`) : '–';
}

const streamColumns = (page) => [
  { title: 'Stream', order: 'group', cell: stream },
  { title: 'Path', order: 'iif', cell: (row) => `${row.iif} to ${list((row.egresses ?? []).map((egress) => egress.interface))}` },
  { title: 'Health', order: 'verdict', cell: (row) => html`${state(...(VERDICTS[row.verdict] ?? [row.verdict, '']))}
    <div class="quiet">${row.explanation}</div>` },
  { title: 'Kind', order: 'kind', cell: (row) => KINDS[row.kind] ?? row.kind },
  { ...number, title: 'Rate', order: '-ingress.rate.bits_per_second', cell: (row, key) => html`
    ${bitRate(row.ingress?.rate.bits_per_second)}<${RateLine} values=${page.lines.get(`streams ${key}`)} />
    <div class="quiet">${perSecond(row.ingress?.rate.packets_per_second)}, peak ${count(row.ingress?.rate.peak_10ms_packets)} in 10 ms</div>` },
  { ...number, title: 'Lost before us, last minute', order: '-lost_before.minute', cell: (row) => (row.lost_before
    ? html`${count(row.lost_before.minute)} <span class="quiet">(${count(row.lost_before.total)} in all)</span>` : '–') },
  { ...number, title: 'Lost here, last minute', cell: lostHere },
  { title: 'Contents', cell: (row) => contents(row.ingress ?? {}) },
  { title: 'Last packet', cell: (row) => ago(row, row.idle_ms) },
  { title: 'Why', cell: (row) => explain(row, page) },
];

// Joins.

function who(row) {
  if (row.role === 'host') {
    return html`this router${row.for?.length ? html`<div class="quiet">for ${list(row.for)}</div>` : null}`;
  }
  if (row.reporters?.length) return list(row.reporters);
  return row.last_reporter ? `last: ${row.last_reporter}` : 'hosts';
}

function sources(row) {
  const of = (wanted) => (row.sources ?? []).filter((s) => s.forwarded === wanted).map((s) => s.source);
  if (row.mode === 'include') return list(of(true));
  const blocked = of(false);
  return blocked.length ? `any but ${list(blocked)}` : 'any';
}

const groupColumns = [
  { title: 'Group', order: 'group', cell: (row) => row.group },
  { title: 'Interface', order: 'interface', cell: (row) => row.interface },
  { title: 'Who asked', order: 'role', cell: who },
  { title: 'Sources', cell: sources },
  { title: 'Protocol', cell: (row) => row.version ?? '–' },
  { title: 'Notes', cell: (row) => html`${row.error ? state(row.error, 'bad') : '–'}
    ${row.original?.length ? html`<div class="quiet">translated from ${list(row.original)}</div>` : null}` },
];

// Drops.

const dropColumns = (page) => [
  { title: 'Stream', order: 'group', cell: (row) => (row.group ? stream(row) : 'packets without addresses') },
  { title: 'Interface', order: 'interface', cell: (row) => row.interface },
  { title: 'Reason', order: 'reason', cell: (row) => html`${row.reason}
    <div class="quiet">${row.meaning}</div>
    <details><summary>What to do</summary>${row.remedy}</details>` },
  { ...number, title: 'Last minute', order: '-last_minute', cell: (row) => count(row.last_minute) },
  { ...number, title: 'In all', order: '-packets', cell: (row) => html`${count(row.packets)}${row.missed_at_most ? '+' : ''}` },
  { title: 'Last packet', order: 'idle_ms', cell: (row) => html`${ago(row, row.idle_ms)}
    ${row.ttl === undefined ? null : html`<div class="quiet">TTL ${row.ttl}, ${row.size} bytes${row.port ? `, port ${row.port}` : ''}</div>`}` },
  { title: 'Why', cell: (row) => explain(row, page) },
];

// Tunnels, discovery and multicast NAT.

const tunnelColumns = ({ lines }) => [
  { title: 'Interface', order: 'interface', cell: (row) => row.interface },
  { title: 'Role', order: 'role', cell: (row) => (row.role === 'gateway' ? 'gateway: receives' : 'relay: sends') },
  { title: 'Far end', order: 'remote', cell: (row) => row.remote },
  { title: 'State', cell: (row) => (row.igmp || row.mld ? `IGMP ${row.igmp ?? '–'}, MLD ${row.mld ?? '–'}` : '–') },
  { ...number, title: 'Groups', order: '-memberships', cell: (row) => count(row.memberships) },
  { ...number, title: 'Rate', order: '-rates.bytes', cell: (row, key) => (row.packets === undefined ? '–' : html`
    ${bitRate(row.rates && row.rates.bytes * 8)}<${RateLine} values=${lines.get(`tunnels ${key}`)} />
    <div class="quiet">${count(row.packets)} packets</div>`) },
  { title: 'Last', cell: (row) => ago(row, row.idle_ms) },
];

const offerColumns = [
  { title: 'Offer', order: 'what', cell: (row) => html`${row.instance || row.what}
    ${row.instance ? html`<div class="quiet">${row.what}</div>` : null}` },
  { title: 'Device', order: 'device', cell: (row) => html`${row.device}
    ${row.mac ? html`<div class="quiet">${row.mac}</div>` : null}` },
  { title: 'From', order: 'from', cell: (row) => row.from },
  { title: 'Found on', order: 'to', cell: (row) => row.to },
  { title: 'Protocol', order: 'protocol', cell: (row) => row.protocol },
  { title: 'State', cell: (row) => (row.withheld
    ? html`${state(`withheld: ${row.withheld}`, 'warn')}<div class="quiet">${row.explanation}</div>`
    : state('can be found', 'good')) },
  { title: 'Last', order: 'idle_ms', cell: (row) => ago(row, row.idle_ms) },
];

const askerColumns = [
  { title: 'Asker', cell: (row) => html`${row.asker}
    ${row.mac ? html`<div class="quiet">${row.mac}</div>` : null}` },
  { title: 'Asks for', cell: (row) => html`${row.instance || row.what || 'anything'}
    ${row.instance ? html`<div class="quiet">${row.what}</div>` : null}` },
  { title: 'From', cell: (row) => row.from },
  { title: 'Asked on', cell: (row) => row.to },
  { title: 'Protocol', cell: (row) => row.protocol },
  { title: 'State', cell: (row) => (row.withheld
    ? html`${state(`withheld: ${row.withheld}`, 'warn')}<div class="quiet">${row.explanation}</div>`
    : state('asked', 'good')) },
  { title: 'Last', cell: (row) => ago(row, row.idle_ms) },
];

const questionColumns = [
  { title: 'Asker', cell: (row) => row.asker },
  { title: 'Protocol', cell: (row) => row.protocol },
  { title: 'From', cell: (row) => row.from },
  { title: 'Asked on', cell: (row) => row.to },
  { ...number, title: 'Answers', cell: (row) => count(row.answers) },
];

const protocolColumns = [
  { title: 'Discovery', cell: (row) => row.discovery },
  { title: 'Protocol', cell: (row) => row.protocol },
  { title: 'Answers', cell: (row) => (row.answers === 'relay' ? 'through this router' : 'directly') },
  { title: 'Why', cell: (row) => row.reason },
];

const MAPPING_STATES = {
  assigned: ['assigned', 'good'],
  held: ['held: the server does not confirm it', 'warn'],
  unassigned: ['waits for a mapping', 'quiet'],
  conflict: ['conflict', 'bad'],
};

const mappingColumns = [
  { title: 'Global stream', order: 'group', cell: stream },
  { title: 'Local stream', order: 'local_group', cell: (row) => (row.local_group ? `(${row.local_source ?? '*'}, ${row.local_group})` : '–') },
  { title: 'State', order: 'state', cell: (row) => state(...(MAPPING_STATES[row.state] ?? [row.state, ''])) },
  { title: 'Problem', cell: (row) => row.error ?? '–' },
];

const endColumns = [
  { title: 'Role', cell: (row) => row.role },
  { title: 'Server', cell: (row) => html`${row.server} ${row.up ? state('answers', 'good') : state('does not answer', 'bad')}
    ${row.error ? html`<div class="quiet">${row.error}</div>` : null}` },
  { title: 'Upstream', cell: (row) => row.upstream },
  { title: 'Downstream', cell: (row) => row.downstream },
];

// Views.

const ADDRESS_HINT = 'Words that a row must contain. A prefix such as 232.0.0.0/8 matches addresses.';

/** A view with one main table that is searched, sorted and paged. */
function tableView(name, caption, columns, empty, after) {
  return (page) => {
    const { data, query, onQuery } = page;
    const own = typeof columns === 'function' ? columns(page) : columns;
    const none = query.search ? 'Nothing matches the search.' : empty;
    return html`
      <${Tools} columns=${own} query=${query} onQuery=${onQuery} hint=${ADDRESS_HINT} />
      <${DataTable} caption=${caption} columns=${own} table=${data.tables?.[name]} order=${query.order}
        onOrder=${(order) => onQuery({ order, offset: 0 })} empty=${none} />
      <${Pages} table=${data.tables?.[name]} query=${query} onQuery=${onQuery} />
      ${after?.(page)}`;
  };
}

const sideTable = (name, caption, columns, empty) => ({ data }) => {
  const table = data.tables?.[name];
  if (!table || (!table.total && !empty)) return null;
  const shown = table.total > table.order.length ? ` (the first ${table.order.length} of ${count(table.total)})` : '';
  return html`<${DataTable} caption=${caption + shown} columns=${columns} table=${table} empty=${empty} />`;
};

const pendingTable = sideTable('pending', 'Waiting for an interface', pendingColumns);

/** What an operator should look at, in words. */
function problems({ data }) {
  const found = [];
  for (const [name, row] of rowsOf(data.tables?.interfaces)) {
    const isUsed = row.ingress || row.egress;
    if (isUsed && !(row.up && row.carrier)) found.push(html`Interface ${name} is ${row.up ? 'without a carrier' : 'down'}.`);
    if (row.socket_dropped_packets) found.push(html`${count(row.socket_dropped_packets)} packets from ${name} were lost, because mcastor read too slowly.`);
    for (const conflict of row.subnet_conflicts ?? []) found.push(html`${name}: ${conflict}.`);
    if (row.bandwidth?.refused) found.push(html`${row.bandwidth.refused} streams are refused on ${name}, because of its bandwidth limit.`);
  }
  for (const [, row] of rowsOf(data.tables?.streams)) {
    if (row.verdict !== 'fine') found.push(html`The stream ${stream(row)} is ${VERDICTS[row.verdict]?.[0] ?? row.verdict}: ${row.explanation}`);
  }
  for (const [, row] of rowsOf(data.tables?.pending)) {
    found.push(html`The ${row.kind} ${row.name} waits for ${list(row.waiting_for)}.`);
  }
  if (data.router && !data.router.is_ready) found.push('An interface of a route is not being captured yet.');
  return found;
}

function Figure({ title, figure, values, note }) {
  return html`<div><dt>${title}</dt><dd><span class="figure">${figure}</span>
    ${values ? html`<${RateLine} values=${values} />` : null}
    ${note ? html`<div class="quiet">${note}</div>` : null}</dd></div>`;
}

function overview(page) {
  const { data, lines, totals } = page;
  const router = data.router ?? {};
  const found = problems(page);
  const lastMinute = rowsOf(data.tables?.drops).reduce((sum, [, row]) => sum + row.last_minute, 0);
  return html`
    <p>${PLANES[router.plane] ?? `Plane: ${router.plane ?? '–'}.`} The router has run for ${duration(router.uptime_ms ?? 0)}.</p>
    <dl class="figures">
      <${Figure} title="Received" figure=${perSecond(totals.received)} values=${lines.get('received')} note="packets, all interfaces" />
      <${Figure} title="Sent" figure=${perSecond(totals.sent)} values=${lines.get('sent')} note="packets, all interfaces" />
      <${Figure} title="Flows" figure=${count(router.flows)} note=${`of at most ${count(router.flow_limit)}`} />
      <${Figure} title="Dropped in the last minute" figure=${count(lastMinute)} note="packets of the streams below" />
    </dl>
    <section class="box" aria-labelledby="attention">
      <h3 id="attention">${found.length ? 'Needs attention' : 'Nothing needs attention'}</h3>
      ${found.length ? html`<ul>${found.map((text) => html`<li>${text}</li>`)}</ul>`
        : html`<p>All interfaces of routes are up, and no route waits.</p>`}
    </section>
    <${DataTable} caption="Flows with the highest rates" columns=${flowColumns(page)} table=${data.tables?.flows}
      empty="Nothing is being forwarded." />
    <p><a href="#/flows">All flows</a></p>
    <${DataTable} caption="What is dropped most" columns=${dropColumns(page)} table=${data.tables?.drops}
      empty="Nothing was dropped." />
    <p><a href="#/drops">All drops</a></p>`;
}

/** The views: their name in the address, title, first order, the table that is searched if its name is
 * another one, and content. */
export const VIEWS = [
  { name: 'overview', title: 'Overview', content: overview },
  { name: 'interfaces', title: 'Interfaces', order: '',
    content: tableView('interfaces', 'Interfaces', interfaceColumns, 'There is no interface.') },
  { name: 'routes', title: 'Routes', order: '',
    content: tableView('routes', 'Routes and proxies', routeColumns,
      html`There is no route and no proxy. Add a <code>[[route]]</code> or <code>[[proxy]]</code> to the settings.`, pendingTable) },
  { name: 'flows', title: 'Flows', order: 'rate',
    content: tableView('flows', 'Flows', flowColumns, 'No packet of a route has arrived in the last minute.') },
  { name: 'streams', title: 'Streams', order: '',
    content: tableView('streams', 'Monitored streams', streamColumns,
      html`No stream is monitored. <code>monitor = "auto"</code> in a route or proxy turns it on.`) },
  { name: 'groups', title: 'Joins', order: '',
    content: tableView('groups', 'Joined groups, and who asked', groupColumns, 'No group is joined.') },
  { name: 'drops', title: 'Drops', order: '-last_minute',
    content: tableView('drops', 'Dropped packets, by stream and reason', dropColumns, 'Nothing was dropped.') },
  { name: 'tunnels', title: 'Tunnels', order: '',
    content: tableView('tunnels', 'Tunnels of AMT', tunnelColumns,
      html`There is no tunnel. <code>[[amt.gateway]]</code> and <code>[[amt.relay]]</code> in the settings make some.`) },
  { name: 'discovery', title: 'Discovery', order: '', table: 'offers',
    content: tableView('offers', 'What devices offer', offerColumns,
      html`Nothing was offered. <code>[[discovery]]</code> in the settings lets devices of one network be found in another.`,
      (page) => [
        sideTable('askers', 'Who asks for what', askerColumns)(page),
        sideTable('questions', 'Open questions', questionColumns)(page),
        sideTable('protocols', 'How answers come back', protocolColumns)(page),
      ]) },
  { name: 'mnat', title: 'Multicast NAT', order: '', table: 'mappings',
    content: tableView('mappings', 'Mappings', mappingColumns,
      html`There is no mapping. <code>[mnat]</code> in the settings makes this router an end of multicast NAT.`,
      sideTable('mnat', 'This router', endColumns)) },
];
