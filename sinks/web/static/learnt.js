// SPDX-License-Identifier: Apache-2.0
// What was learnt of workloads: their states, rules with evidence, the discovered policy to copy. No network here: `page.js` asks.
import { el, number, table, visible, when } from './draw.js';

const by = (id) => document.getElementById(id);
const quiet = (...text) => el('span', { class: 'quiet' }, ...text);
const KINDS = { Stable: 'allow', Stabilizing: 'audit', Learning: 'none' };
const STATES = Object.keys(KINDS);
const badge = (state, text = state) => el('span', { class: 'badge', 'data-verdict': KINDS[state] || 'none', 'data-state': state }, text);
const percent = (share) => (share > 0 && share < 0.001 ? '< 0.1 %' : `${(100 * share).toFixed(1)} %`);
const many = (count, word) => `${number(count)} ${word}${count === 1 ? '' : 's'}`;

export const linesOf = (learnt, workload) => (learnt?.lines || []).filter((one) => one.workloads.includes(workload));

// In the list of workloads: one container's state, or how many of each.
export function states(learnt, workload) {
  const lines = linesOf(learnt, workload);
  if (lines.length === 1) return [badge(lines[0].state), quiet(` ${percent(lines[0].unseen)} unseen`)];
  return STATES.map((state) => [state, lines.filter((one) => one.state === state).length])
    .filter(([, count]) => count).map(([state, count]) => badge(state, `${number(count)} ${state}`));
}

// Who an address was, where the cluster told it.
export function peerName(learnt, address) {
  const names = learnt && Object.hasOwn(learnt.peers, address) ? learnt.peers[address] : null;
  return names ? names.join(', then ') : '';
}

export function progress(learnt) {
  const parts = [];
  if (learnt?.learning) {
    const { read, learnt: done, of } = learnt.far;
    parts.push(of ? `learning: ${number(done)} of ${many(of, 'workload')}` : `learning: ${many(read, 'stored behaviour')} read`);
    parts.push(el('progress', of ? { max: of, value: done, 'aria-label': 'learning' } : { 'aria-label': 'learning' }));
  } else if (learnt?.at) parts.push('learnt from the last 30 days, as of ', when(learnt.at), ` in ${learnt.took} s`);
  if (learnt?.why) parts.push(el('span', { class: 'trouble' }, ` not learnt: ${learnt.why}`));
  for (const remark of learnt?.remarks || []) parts.push(quiet(` ${remark}`));
  if (learnt?.more) parts.push(quiet(` ${many(learnt.more, 'more workload')} not shown; hauberk discover has all`));
  by('learning').replaceChildren(...parts.map((one) => (one instanceof Node ? one : el('span', {}, one))));
  by('learning').hidden = !parts.length;
}

const COLUMNS = ['', 'STATE', 'UNSEEN', 'NEXT CLEAN', 'INSTANCES', 'RULES', 'SET APART', 'LAST NEW', 'WORKLOAD', 'WHAT WAS NEW'];

export function shown(learnt, workload, policy, sheet, pick) {
  const into = by('learnt');
  const lines = linesOf(learnt, workload);
  const key = JSON.stringify([workload, lines, policy, sheet]);
  // Not made anew for nothing: somebody may be marking text in it.
  if (into.shownFor === key) return;
  into.shownFor = key;
  into.hidden = !lines.length;
  const rows = lines.map((one) => {
    const button = el('button', { type: 'button', class: 'rules', 'aria-expanded': String(one.policy === policy) }, 'rules');
    button.addEventListener('click', () => pick(one.policy === policy ? '' : one.policy));
    return [button, badge(one.state), percent(one.unseen), percent(one.clean), one.instances, one.rules, one.apart,
      one.newest_at ? when(one.newest_at) : '-', one.label, one.newest || '-'];
  });
  into.replaceChildren(
    el('h2', {}, 'Learnt'),
    ...table(COLUMNS, rows, 0, 'learnt'),
    ...(policy && lines.some((one) => one.policy === policy) ? [chosen(sheet)] : []));
}

const RULES = ['RULE', 'COUNT', 'FIRST SEEN', 'LAST SEEN', 'PODS', 'SOURCES'];
const APART = ['REASON', 'OPERATION', 'RESOURCE', 'COUNT', 'FIRST SEEN', 'ID'];
const named = (names, more) => names.join(', ') + (more ? ` and ${number(more)} more` : '') || '-';

function chosen(sheet) {
  if (!sheet) return el('p', { class: 'quiet' }, 'asking');
  if (sheet.failed) return el('p', { class: 'trouble' }, sheet.failed);
  const rules = sheet.rules.map((one) => [one.rule, one.count, when(one.first), when(one.last), named(one.pods, one.more_pods), named(one.sources, one.more_sources)]);
  const apart = sheet.apart.map((one) => [one.reason, one.operation, one.resource, one.count, when(one.first), one.ident]);
  const made = el('div', { id: 'policy' },
    el('h3', {}, sheet.policy),
    el('p', { class: 'quiet' }, sheet.sentence),
    ...(sheet.selects_unseen ? [el('p', { class: 'trouble', id: 'selects-unseen' }, sheet.selects_unseen)] : []),
    ...(rules.length ? table(RULES, rules, sheet.more_rules, 'rules') : [el('p', { class: 'quiet' }, 'No rules: nothing that was seen is learnt.')]));
  if (apart.length) made.append(el('h3', {}, 'Set apart, not learnt'), ...table(APART, apart, sheet.more_apart, 'set apart'));
  if (sheet.yaml) {
    const said = el('span', { class: 'quiet', role: 'status' }, '');
    const button = el('button', { type: 'button', id: 'copy' }, 'Copy as YAML');
    button.addEventListener('click', async () => { said.textContent = (await copied(sheet.yaml, text)) ? ' copied' : ' this browser does not let a page copy: mark the text'; });
    // Newlines of ours stay newlines; anything else that is no letter was spelled out where the text was made.
    const text = el('pre', { id: 'yaml', tabindex: '0', 'aria-label': 'policy as YAML' },
      ...sheet.yaml.split('\n').flatMap((line, index) => (index ? [document.createTextNode('\n'), visible(line)] : [visible(line)])));
    made.append(el('h3', {}, 'Policy'), el('p', {}, button, said), text);
  } else if (sheet.rules.length) made.append(el('p', { class: 'quiet' }, 'This policy is too long for a page: hauberk discover prints it.'));
  return made;
}

// The clipboard asks for HTTPS or the loopback; behind a plain proxy the text is marked and copied as by hand.
async function copied(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(shown);
    return document.execCommand('copy');
  }
}
