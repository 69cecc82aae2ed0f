// Parts that several views use.

import { Component, h } from './preact.js';
import htm from './htm.js';
import { count } from './format.js';

export const html = htm.bind(h);

/** Seconds that a rate line shows. */
export const LINE_SECONDS = 60;

/** A line of the last minute. Decoration: the figure beside it says the same. */
export function RateLine({ values }) {
  const max = Math.max(...(values ?? []), 1e-9);
  const point = (value, at) => {
    const x = LINE_SECONDS - values.length + at + 1;
    return `${x},${(19 - (18 * value) / max).toFixed(1)}`;
  };
  const points = (values ?? []).map(point).join(' ');
  return html`<svg class="rate" viewBox="0 0 ${LINE_SECONDS} 20" preserveAspectRatio="none"
    aria-hidden="true" focusable="false">
    <polyline points=${points} fill="none" stroke="currentColor" stroke-width="1.5"
      vector-effect="non-scaling-stroke" />
  </svg>`;
}

/** The rows of a table of the state, in their order. */
export const rowsOf = (table) => (table?.order ?? []).map((key) => [key, table.rows[key]]);

/**
 * A table. A column has `title`, `cell(row, key)`, and perhaps `order`: the order that its button
 * asks for. The first column is the header of the row. On a narrow screen each row is a card.
 */
export function DataTable({ caption, columns, table, order, onOrder, empty }) {
  if (!table) return html`<p class="box">Waiting for data …</p>`;
  const rows = rowsOf(table);
  if (!rows.length) return html`<p class="box">${empty}</p>`;
  const head = (column) => {
    const title = column.title;
    if (!column.order || !onOrder) {
      return html`<th scope="col" role="columnheader" class=${column.class}>${title}</th>`;
    }
    const [sorted, next] = sortOf(column, order);
    return html`<th scope="col" role="columnheader" aria-sort=${sorted} class=${column.class}>
      <button type="button" onClick=${() => onOrder(next)}>
        ${title}${sorted === 'none' ? '' : html`<span aria-hidden="true"> ${sorted === 'ascending' ? '▲' : '▼'}</span>`}
      </button></th>`;
  };
  const cell = (column, row, key, at) => {
    const content = column.cell(row, key);
    if (at === 0) return html`<th scope="row" role="rowheader">${content}</th>`;
    return html`<td role="cell" class=${column.class} data-label=${column.title}>${content}</td>`;
  };
  return html`<table role="table">
    <caption>${caption}</caption>
    <thead role="rowgroup"><tr role="row">${columns.map(head)}</tr></thead>
    <tbody role="rowgroup">${rows.map(([key, row]) => html`<tr role="row" key=${key}>
      ${columns.map((column, at) => cell(column, row, key, at))}</tr>`)}</tbody>
  </table>`;
}

/** How a column is sorted now, and the order that its button asks for. */
function sortOf({ order: own, isFixed, isAscending }, current) {
  const reverse = own.startsWith('-') ? own.slice(1) : `-${own}`;
  const direction = (order) =>
    (isFixed ? isAscending : !order.startsWith('-')) ? 'ascending' : 'descending';
  if (current === own) return [direction(own), isFixed ? own : reverse];
  if (current === reverse) return [direction(reverse), own];
  return ['none', own];
}

/** The search and the order of a table. */
export function Tools({ columns, query, onQuery, hint }) {
  const sortable = columns.filter((column) => column.order);
  return html`<form class="tools" role="search" onSubmit=${(event) => event.preventDefault()}>
    <label>Search
      <input type="search" value=${query.search} aria-describedby="hint" maxlength="200"
        autocomplete="off" spellcheck="false"
        onInput=${(event) => onQuery({ search: event.target.value, offset: 0 })} />
    </label>
    <label class="sort">Sort by
      <select onChange=${(event) => onQuery({ order: event.target.value, offset: 0 })}>
        ${sortable.map((column) => html`<option value=${column.order}
          selected=${query.order === column.order}>${column.title}</option>`)}
      </select>
    </label>
    <p id="hint" class="quiet">${hint}</p>
  </form>`;
}

/** Which rows are shown, and buttons for the pages before and after. */
export function Pages({ table, query, onQuery }) {
  if (!table || !table.total) return null;
  const { offset, total } = table;
  const end = offset + table.order.length;
  const range = table.order.length ? `Rows ${count(offset + 1)} to ${count(end)} of ${count(total)}` : `No row of ${count(total)}`;
  if (total <= query.limit && offset === 0) return html`<p class="pages">${range}</p>`;
  const go = (to) => onQuery({ offset: Math.max(0, to) });
  return html`<div class="pages" role="group" aria-label="Pages">
    <button type="button" disabled=${offset === 0} onClick=${() => go(0)}>First</button>
    <button type="button" disabled=${offset === 0} onClick=${() => go(offset - query.limit)}>Previous</button>
    <span>${range}</span>
    <button type="button" disabled=${end >= total} onClick=${() => go(offset + query.limit)}>Next</button>
  </div>`;
}

/** A dialog that is open as long as it exists. Escape and the button close it. */
export class Dialog extends Component {
  componentDidMount() {
    this.element.showModal();
  }

  render({ title, onClose, children }) {
    return html`<dialog ref=${(element) => { this.element = element; }} onClose=${onClose}
      aria-labelledby="dialog-title">
      <button type="button" class="close" onClick=${() => this.element.close()}>Close</button>
      <h2 id="dialog-title">${title}</h2>
      ${children}
    </dialog>`;
  }
}
