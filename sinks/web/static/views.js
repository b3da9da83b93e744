// SPDX-License-Identifier: Apache-2.0
// What each section shows, from what the stream and the questions brought. No network here: `page.js` fetches and calls these.
import { el, kindOf, map, number, table, verdict, visible, when } from './draw.js';

const by = (id) => document.getElementById(id);
const FIRST = 100;

// ---- alerts

export function alertRow({ ident, alert }) {
  const who = alert.PodName || alert.ContainerName || alert.HostName || '';
  const severity = Number(alert.Severity) || 0;
  const summary = el('summary', {},
    when(alert.Timestamp),
    verdict(alert.Action),
    el('span', { class: 'severity', 'data-severity': severity >= 7 ? 'high' : severity >= 4 ? 'middle' : 'low', title: 'severity, 10 is worst' }, alert.Severity || '-'),
    el('span', { class: 'who' }, alert.NamespaceName ? `${alert.NamespaceName}/` : '', el('b', {}, who)),
    el('span', { class: 'what' }, el('span', { class: 'quiet' }, `${alert.Operation || ''} `), el('span', { class: 'path' }, alert.ProcessName || alert.Source || '-'), el('span', { class: 'quiet' }, ' \u2192 '), el('span', { class: 'path' }, alert.Resource || '-')),
    el('span', { class: 'why' }, el('b', {}, alert.PolicyName || 'no policy'), alert.Rule ? [' ', el('code', {}, alert.Rule)] : null, alert.Mode === 'shadow' ? el('span', { class: 'badge', 'data-verdict': 'none' }, 'shadow') : null, alert.Count > 1 ? ` \u00d7${number(alert.Count)}` : null, alert.Message ? el('span', { class: 'quiet' }, ` ${alert.Message}`) : null));
  const made = el('details', { 'data-ident': ident }, summary);
  // The whole of it is put in when somebody looks.
  made.addEventListener('toggle', () => {
    if (made.open && made.children.length === 1) made.append(el('pre', {}, ...JSON.stringify(alert, null, 2).split('\n').flatMap((line, index) => (index ? [document.createTextNode('\n'), line] : [line]))));
  });
  return made;
}

export function passes({ alert }, wanted) {
  if (wanted.action && alert.Action !== wanted.action) return false;
  if (wanted.namespace && alert.NamespaceName !== wanted.namespace) return false;
  if (!wanted.text) return true;
  const text = [alert.NamespaceName, alert.PodName, alert.ContainerName, alert.HostName, alert.Labels, alert.ProcessName, alert.Source, alert.Resource, alert.PolicyName, alert.Rule, alert.Message, alert.Tags, alert.Operation, alert.Result].join('\n').toLowerCase();
  return wanted.text.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

// All rows again, after a filter changed; `most` grows with "Show more".
export function alertList(alerts, wanted, most = FIRST) {
  const fits = alerts.filter((one) => passes(one, wanted));
  by('list').replaceChildren(...(fits.length ? fits.slice(0, most).map(alertRow) : [el('p', { class: 'quiet' }, alerts.length ? 'Nothing fits the filter.' : 'No alerts yet. They appear here as they happen.')]));
  by('more').hidden = fits.length <= most;
  return fits.length;
}

// New ones on top, without touching the rest: an open one stays open, the keyboard stays where it is.
export function alertsOnTop(into, fresh, most = FIRST) {
  if (!fresh.length) return;
  into.querySelector(':scope > p')?.remove();
  const rows = fresh.map(alertRow);
  for (const row of rows) row.classList.add('fresh');
  into.prepend(...rows);
  while (into.children.length > most) into.lastElementChild.remove();
}

export function choices(select, values) {
  const have = new Set([...select.options].map((one) => one.value));
  for (const value of [...values].sort()) if (value && !have.has(value)) select.append(el('option', { value }, value));
}

// ---- now

export function actions(alerts) {
  const counts = new Map();
  for (const { alert } of alerts) {
    const name = (alert.Action || 'none') + (alert.Mode === 'shadow' ? ' (shadow)' : '');
    counts.set(name, (counts.get(name) || 0) + 1);
  }
  const most = Math.max(1, ...counts.values());
  const bars = [...counts].sort((a, b) => b[1] - a[1]).map(([name, count]) => {
    const bar = el('meter', { min: 0, max: most, value: count, 'aria-hidden': 'true', 'data-verdict': kindOf(name) });
    return el('li', {}, verdict(name), bar, el('span', { class: 'number', 'data-action': name }, number(count)));
  });
  const oldest = alerts.length ? alerts[alerts.length - 1].alert.Timestamp : 0;
  by('actions').replaceChildren(bars.length ? el('ul', { class: 'bars' }, bars) : el('p', { class: 'quiet' }, 'No alerts yet.'),
    alerts.length ? el('p', { class: 'quiet' }, `of the newest ${number(alerts.length)} alerts, since `, when(oldest)) : '');
}

export function tiles(values) {
  by('tiles').replaceChildren(...values.map(([name, value, kind]) => el('div', { 'data-verdict': kind || null }, el('dt', {}, name), el('dd', {}, value))));
}

// ---- workloads

const total = (counts) => counts.allowed + counts.audited + counts.denied;
const told = (counts) => [
  counts.denied ? el('span', { class: 'badge', 'data-verdict': 'deny' }, `${number(counts.denied)} denied`) : null,
  counts.audited ? el('span', { class: 'badge', 'data-verdict': 'audit' }, `${number(counts.audited)} audited`) : null,
];
const left = (more, what) => (more ? el('p', { class: 'quiet' }, `${number(more)} more ${what} are not shown`) : '');

export function workloads(survey, text, chosen, pick) {
  const words = text.toLowerCase();
  const fits = survey.workloads.filter((one) => [one.name, one.labels, one.image, one.node].join('\n').toLowerCase().includes(words));
  const list = fits.map((one) => {
    const button = el('button', { type: 'button', class: 'pick', 'aria-pressed': String(one.name === chosen) },
      el('b', {}, one.name), el('span', { class: 'quiet' }, one.host ? 'host' : [one.containers > 1 ? `${number(one.containers)} containers` : '', one.image, one.labels].filter(Boolean).join(' \u00b7 ')),
      el('span', {}, el('span', {}, `${number(total(one.counts))} events `), ...told(one.counts)));
    button.addEventListener('click', () => pick(one.name));
    return el('li', {}, button);
  });
  by('workload-list').replaceChildren(el('h2', {}, `${number(fits.length)} workloads`), list.length ? el('ul', { class: 'picks' }, list) : el('p', { class: 'quiet' }, 'Nobody in this time.'), left(survey.more_workloads, 'workloads'));
}

const TIMES = 'LAST UPDATED TIME';

export function sheet(found) {
  const head = [['Namespace', found.header.namespace], ['Pod', found.header.pod], ['Container', found.header.container], ['Cluster', found.header.cluster], ['Labels', found.header.labels]].filter(([, value]) => value);
  const parts = found.tables.flatMap((one) => {
    // Columns that nobody has anything in are left out: names and labels of peers, where nobody knows them.
    const kept = one.columns.map((_, index) => index).filter((index) => one.lines.some((line) => line[index] !== ''));
    const columns = kept.map((index) => one.columns[index]);
    const cell = (line, index) => {
      const name = one.columns[index];
      if (name === TIMES) return when(line[index]);
      if (name === 'STATUS') return verdict(line[index]);
      return name.endsWith('PORT') ? String(line[index]) : line[index];
    };
    return [el('h3', {}, one.title), ...table(columns, one.lines.map((line) => kept.map((index) => cell(line, index))), one.more, one.title)];
  });
  by('sheet').replaceChildren(el('h2', {}, found.workload), el('dl', { class: 'head' }, head.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value)))),
    ...(parts.length ? parts : [el('p', { class: 'quiet' }, 'Nothing was seen in this time.')]), found.cut ? el('p', { class: 'quiet' }, 'Only what happened most often is counted here; hauberk summary counts all.') : '');
}

// ---- network

const WAYS = { egress: 'to', ingress: 'from', bind: 'listens on' };

export function network(survey, text) {
  const words = text.toLowerCase();
  const fits = survey.edges.filter((one) => [one.workload, one.peer, one.port, one.protocol, one.way].join(' ').toLowerCase().includes(words));
  map(by('map'), fits);
  by('edges').replaceChildren(el('h2', {}, `${number(fits.length)} edges`), ...(fits.length
    ? table(['WORKLOAD', 'WAY', 'PEER', 'PORT', 'PROTOCOL', 'COUNT', 'LAST', 'STATUS'], fits.map((one) => [one.workload, WAYS[one.way], one.peer || '-', String(one.port), one.protocol, total(one.counts), when(one.counts.last),
      el('span', {}, ...(one.counts.denied || one.counts.audited ? told(one.counts) : [verdict('Allow')]))]), 0, 'edges') : [el('p', { class: 'quiet' }, 'No connections in this time.')]), left(survey.more_edges, 'edges'));
}

// ---- policies

export function policies(survey) {
  const made = survey.policies.map((one) => el('article', { class: 'card' },
    el('h2', {}, one.name, ' ', el('span', { class: 'quiet' }, [one.kind, one.namespace].filter(Boolean).join(' in '))),
    el('p', {}, ...told(one.counts), one.counts.allowed ? el('span', { class: 'badge', 'data-verdict': 'allow' }, `${number(one.counts.allowed)} allowed`) : null, ' last ', when(one.counts.last)),
    ...table(['RULE', 'LINE', 'DENIED', 'AUDITED', 'ALLOWED', 'LAST'], one.rules.map((rule) => [rule.position || 'default posture', rule.line ? String(rule.line) : '-', rule.counts.denied, rule.counts.audited, rule.counts.allowed, when(rule.counts.last)]), 0, `rules of ${visible(one.name)}`)));
  by('policy-list').replaceChildren(...(made.length ? made : [el('p', { class: 'card quiet' }, 'No policy decided anything in this time.')]), left(survey.more_policies, 'policies'));
}
