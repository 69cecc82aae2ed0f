// Figures and times in words.

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat('en', { maximumFractionDigits: 1 });

/** A number with separators: 1,234. */
export const count = (number) => whole.format(number ?? 0);

/** A rate in packets: 1,234/s. Without a rate, a dash. */
export const perSecond = (rate) => (rate === undefined ? '–' : `${tenths.format(rate)}/s`);

/** A rate in bits: 12.3 Mbit/s. Without a rate, a dash. */
export function bitRate(rate) {
  if (rate === undefined) return '–';
  const units = ['bit/s', 'kbit/s', 'Mbit/s', 'Gbit/s'];
  let unit = 0;
  while (rate >= 1000 && unit < units.length - 1) {
    rate /= 1000;
    unit += 1;
  }
  return `${tenths.format(rate)} ${units[unit]}`;
}

/** Bytes: 1.2 MB. */
export function bytes(number) {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${tenths.format(number)} ${units[unit]}`;
}

/** A duration: 5 s, 3 min, 2 h, 4 days. */
export function duration(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} days`;
}

/** How long ago something was that was `ms` ago when its row arrived. */
export function ago(row, ms) {
  if (ms === undefined) return 'never';
  const now = ms + Date.now() - row.receivedAt;
  return now < 2000 ? 'now' : `${duration(now)} ago`;
}

/** Source and group: (10.0.0.1, 232.1.1.1). */
export const stream = (row) => `(${row.source ?? '*'}, ${row.group ?? '?'})`;

/** Words with commas, or a dash. */
export const list = (words) => (words && words.length ? words.join(', ') : '–');
