// The dialog that says what happens to a packet, and why.

import { Component } from './preact.js';
import { Dialog, html } from './parts.js';
import { count, list, stream } from './format.js';

function Egress({ egress }) {
  if (egress.reason) {
    return html`<li><span class="bad">Not sent on ${egress.oif}: ${egress.reason}.</span> ${egress.meaning}</li>`;
  }
  const parts = egress.packets > 1 ? ` in ${egress.packets} fragments, for an MTU of ${egress.mtu}` : '';
  return html`<li><span class="good">Leaves on ${egress.oif}</span> with TTL ${egress.ttl}${parts}, by ${egress.rule}.
    ${egress.rewrite ? `New ${list(Object.entries(egress.rewrite).filter(([, v]) => v).map(([k, v]) => `${k} ${v}`))}.` : null}</li>`;
}

function Ingress({ ingress }) {
  return html`<section class="box"><h3>Arrives on ${ingress.iif}:
      ${' '}<span class=${ingress.forwarded ? 'good' : 'bad'}>${ingress.forwarded ? 'forwarded' : 'not forwarded'}</span></h3>
    ${ingress.is_down ? html`<p class="warn">The interface is down or has no carrier, so nothing arrives now.</p>` : null}
    ${ingress.reason ? html`<p>${ingress.reason}: ${ingress.meaning}</p>` : null}
    ${ingress.active_ingress && ingress.active_ingress !== ingress.iif
      ? html`<p>The stream is forwarded from ${ingress.active_ingress}.</p>` : null}
    <ul>
      ${ingress.rules.map((rule) => html`<li>${rule.name} ${rule.result === 'matched' ? 'matches it' : rule.result === 'excepted' ? 'excepts it' : `refuses it: ${rule.reason}. ${rule.meaning ?? ''}`}</li>`)}
      ${ingress.egresses.map((egress) => html`<${Egress} egress=${egress} />`)}
    </ul>
    ${ingress.declined ? html`<p class="quiet">Not forwarded by the kernel: ${ingress.declined}</p>` : null}
  </section>`;
}

function Answer({ answer }) {
  const members = answer.groups.map((group) => `${group.interface} (${group.role === 'host' ? 'this router' : group.last_reporter ?? 'hosts'})`);
  return html`
    ${answer.interfaces.length ? null : html`<p>No interface receives packets: there is no route or proxy, or all of them wait for interfaces.</p>`}
    ${answer.interfaces.map((ingress) => html`<${Ingress} ingress=${ingress} />`)}
    <p>${members.length ? `The group is joined on ${list(members)}.` : 'No host has joined the group here, and this router has not joined it.'}</p>
    ${answer.refused.map((refused) => html`<p class="warn">${count(refused.messages)} reports on ${refused.interface} were refused: ${refused.reason}. ${refused.meaning} ${refused.remedy}</p>`)}
    ${answer.drops.length ? html`<h3>Packets that were dropped</h3><ul>${answer.drops.map((drop) => html`<li>
      ${count(drop.packets)} on ${drop.interface}: ${drop.reason}. ${drop.meaning} <strong>To do:</strong> ${drop.remedy}</li>`)}</ul>` : null}
    ${answer.discovery.map((text) => html`<p>${text}.</p>`)}`;
}

/** Asks the router about `packet` as soon as it is shown. */
export class Explain extends Component {
  constructor(props) {
    super(props);
    this.state = { answer: null, error: null };
  }

  async componentDidMount() {
    try {
      const response = await fetch(`api/v1/explain?${new URLSearchParams(this.props.packet)}`);
      const body = await response.json();
      if (body.error) throw new Error(body.error);
      this.setState({ answer: body.explain });
    } catch (error) {
      this.setState({ error: error.message });
    }
  }

  render({ packet, onClose }, { answer, error }) {
    return html`<${Dialog} title=${`What happens to ${stream(packet)}`} onClose=${onClose}>
      <div aria-live="polite">
        ${error ? html`<p class="bad">${error}</p>` : null}
        ${answer ? html`<${Answer} answer=${answer} />` : null}
        ${answer || error ? null : html`<p>Asking the router …</p>`}
      </div>
    <//>`;
  }
}
