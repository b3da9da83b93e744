// SPDX-License-Identifier: Apache-2.0
// The page: one stream for what is live, questions for the rest. It only reads. `views.js` shows, `draw.js` makes elements.
import { chart, number, rate, el } from './draw.js';
import * as learnt from './learnt.js';
import * as views from './views.js';

const by = (id) => document.getElementById(id);
const KEPT = 2000; // alerts held in this page
const FIRST = 100; // alerts shown before "Show more"
const WINDOW = 15; // seconds over which "events a second" is measured
const AGAIN = 10000; // ms between two surveys while one is looked at
const LEARNING = 1000; // ms between two looks at how far the learner is
const SINCE = [[1, 'last hour'], [24, 'last day'], [168, 'last week'], [2160, '90 days']];

const state = {
  alerts: [], points: new Map(), seen: [], begun: false, trouble: false, offset: 0, // from the stream
  survey: null, hours: 24, workload: '', // from the questions
  learnt: null, off: false, policy: '', rules: null, // what was learnt; the policy that is open, and its rules
  tab: 'now', most: FIRST,
};

// ---- the stream

let stream = null;
let retry = 0;

function connect() {
  const newest = state.alerts.length ? state.alerts[0].ident : null;
  stream?.close();
  // A browser that lost the line says itself what it had; this is for a page that begins a new stream.
  stream = new EventSource(newest === null ? 'events' : `events?after=${newest}`);
  stream.addEventListener('open', () => { retry = 0; say('wait', 'loading'); });
  stream.addEventListener('error', () => {
    say('wait', 'reconnecting');
    // CLOSED: it was refused (too many browsers, no server behind a proxy) and does not try again by itself.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, Math.min(30000, 1000 * 2 ** retry++));
  });
  const on = (name, what) => stream.addEventListener(name, (event) => what(JSON.parse(event.data)));
  on('reset', () => { state.alerts = []; state.points.clear(); state.seen = []; state.begun = false; showAlerts(); });
  on('activity', activity);
  on('alerts', alerts);
  on('trouble', ({ why }) => { state.trouble = true; notice(why); say('bad', 'no answer from the store'); });
  on('gap', ({ updates, alerts: missed }) => {
    if (missed) notice(`${number(missed)} older alerts are not shown here: hauberk get alerts has them.`);
    if (updates) { notice(`This page was too slow: ${number(updates)} updates were dropped, and it began anew.`); connect(); }
  });
}

function say(kind, text) {
  by('state').dataset.state = kind;
  by('state').textContent = text;
}

function notice(text) {
  by('notice').textContent = text;
  by('notice').hidden = !text;
}

function activity({ now, points }) {
  if (state.trouble) { state.trouble = false; notice(''); say('live', 'live'); connect(); return; }
  say('live', 'live'); // not before: until then the zeros are nobody's
  state.offset = now - Date.now() / 1000;
  let fresh = 0;
  for (const [start, name, status, count] of points) {
    const key = `${start}|${name}|${status}`;
    fresh += count - (state.points.get(key) || 0);
    state.points.set(key, count);
  }
  for (const key of state.points.keys()) if (Number(key.split('|')[0]) < now - 2100) state.points.delete(key);
  // The first message is the past, not news.
  if (state.begun && fresh > 0) state.seen.push([performance.now(), fresh]);
  state.begun = true;
  showNow();
}

function alerts(came) {
  const have = new Set(state.alerts.map((one) => one.ident));
  const fresh = came.filter((one) => !have.has(one.ident));
  if (!fresh.length) return;
  const older = state.alerts.length && fresh[0].ident < state.alerts[0].ident;
  state.alerts = [...fresh, ...state.alerts].sort((a, b) => b.ident - a.ident).slice(0, KEPT);
  views.choices(by('filter-action'), new Set(fresh.map((one) => one.alert.Action)));
  views.choices(by('filter-namespace'), new Set(fresh.map((one) => one.alert.NamespaceName)));
  if (older || state.alerts.length === fresh.length) return showAlerts();
  views.alertsOnTop(by('list'), fresh.filter((one) => views.passes(one, wanted())), state.most);
  views.alertsOnTop(by('newest'), fresh.slice(0, 5), 5);
  counted();
  views.actions(state.alerts);
}

const wanted = () => ({
  text: by('filter-text').value.trim(), action: by('filter-action').value, namespace: by('filter-namespace').value,
});

function counted() {
  const fits = state.alerts.filter((one) => views.passes(one, wanted())).length;
  by('shown').textContent = `${number(fits)} of ${number(state.alerts.length)}`;
}

function showAlerts() {
  views.alertList(state.alerts, wanted(), state.most);
  counted();
  by('newest').replaceChildren(...(state.alerts.length ? state.alerts.slice(0, 5).map(views.alertRow) : [el('p', { class: 'quiet' }, 'None yet.')]));
  views.actions(state.alerts);
}

function showNow() {
  if (state.tab !== 'now' || document.hidden) return;
  const now = Date.now() / 1000 + state.offset;
  const sums = { all: 0, Deny: 0, Audit: 0 };
  for (const [key, count] of state.points) {
    const [start, , status] = key.split('|');
    if (Number(start) < now - 1800) continue;
    sums.all += count;
    if (status in sums) sums[status] += count;
  }
  const begin = performance.now() - WINDOW * 1000;
  state.seen = state.seen.filter(([at]) => at >= begin);
  const fresh = state.seen.reduce((sum, [, count]) => sum + count, 0);
  const lost = state.alerts.reduce((sum, { alert }) => sum + (alert.Timestamp >= now - 1800 ? views.lost(alert) : 0), 0);
  views.tiles([
    ['events a second', rate(fresh / WINDOW)],
    ['events, half an hour', number(sums.all)],
    ['denied', number(sums.Deny), sums.Deny ? 'deny' : ''],
    ['audited', number(sums.Audit), sums.Audit ? 'audit' : ''],
    ['lost or unread', number(lost), lost ? 'deny' : ''],
  ]);
  if (!by('chart').matches(':hover')) chart(by('chart'), by('reading'), state.points, now);
}

// ---- the questions

async function ask(path) {
  const answer = await fetch(path);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.why);
  return said;
}

let asked = 0;
async function survey() {
  const mine = ++asked;
  try {
    const found = await ask(`api/survey?hours=${state.hours}`);
    if (mine !== asked) return;
    state.survey = found;
    showSurvey();
    if (found.uncounted) notice(`${number(found.uncounted)} events have too many distinct names to list them.`);
    if (state.tab === 'workloads' && state.workload) await sheet();
  } catch (error) {
    if (mine === asked) notice(error.message);
  }
}

function showSurvey() {
  if (!state.survey) return;
  const focused = document.activeElement?.closest('.pick')?.firstChild.textContent;
  if (state.tab === 'workloads') views.workloads(state.survey, state.learnt, by('workload-text').value, state.workload, pick);
  if (state.tab === 'network') views.network(state.survey, state.learnt, by('edge-text').value);
  if (state.tab === 'policies') views.policies(state.survey);
  if (focused) [...document.querySelectorAll('.pick')].find((one) => one.firstChild.textContent === focused)?.focus();
}

let looking = 0;
async function learn() {
  clearTimeout(looking);
  if (state.off || document.hidden || !['workloads', 'network'].includes(state.tab)) return;
  try {
    const had = state.learnt;
    const found = await ask(`api/learnt${had ? `?known=${had.at}` : ''}`);
    if (found.off) { state.off = true; return; }
    const fresh = !found.same;
    state.learnt = fresh ? found : { ...found, lines: had.lines, peers: had.peers };
    learnt.progress(found);
    if (found.learning) looking = setTimeout(learn, LEARNING);
    if (fresh) { showSurvey(); showLearnt(); if (state.policy) await rules(); }
  } catch (error) {
    notice(error.message);
  }
}

function showLearnt() {
  learnt.shown(state.learnt, state.workload, state.policy, state.rules, (policy) => { state.policy = policy; state.rules = null; showLearnt(); if (policy) rules(); });
}

async function rules() {
  const mine = state.policy;
  const found = await ask(`api/learnt?policy=${encodeURIComponent(mine)}`).catch((error) => ({ failed: error.message }));
  if (mine !== state.policy) return;
  state.rules = found;
  showLearnt();
}

function pick(name) {
  if (name !== state.workload) { state.policy = ''; state.rules = null; }
  state.workload = name;
  showSurvey();
  showLearnt();
  sheet().then(() => { if (matchMedia('(max-width: 820px)').matches) by('sheet').parentElement.scrollIntoView({ block: 'start' }); });
}

async function sheet() {
  const name = state.workload;
  try {
    const found = await ask(`api/workload?name=${encodeURIComponent(name)}&hours=${state.hours}&fold=${by('fold').checked ? 1 : 0}`);
    if (name === state.workload) views.sheet(found);
  } catch (error) {
    notice(error.message);
  }
}

// ---- tabs

const tabs = [...by('tabs').children];

function show(name, focus = false) {
  if (!tabs.some((tab) => tab.id === `tab-${name}`)) name = 'now';
  state.tab = name;
  for (const tab of tabs) {
    const mine = tab.id === `tab-${name}`;
    tab.setAttribute('aria-selected', String(mine));
    tab.tabIndex = mine ? 0 : -1;
    by(tab.getAttribute('aria-controls')).hidden = !mine;
    if (mine && focus) tab.focus();
  }
  if (location.hash !== `#${name}`) history.replaceState(null, '', `#${name}`);
  if (name === 'now') showNow();
  else if (name !== 'alerts') { showSurvey(); survey(); learn(); }
}

tabs.forEach((tab, index) => {
  tab.addEventListener('click', () => show(tab.id.slice(4)));
  tab.addEventListener('keydown', (event) => {
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    show(tabs[(to + tabs.length) % tabs.length].id.slice(4), true);
  });
});
addEventListener('hashchange', () => show(location.hash.slice(1)));

for (const select of document.querySelectorAll('.since')) {
  select.append(...SINCE.map(([hours, text]) => el('option', { value: hours, selected: hours === state.hours }, text)));
  select.addEventListener('change', () => {
    state.hours = Number(select.value);
    for (const other of document.querySelectorAll('.since')) other.value = select.value;
    survey();
  });
}
by('filters').addEventListener('submit', (event) => event.preventDefault());
for (const id of ['filter-text', 'filter-action', 'filter-namespace']) by(id).addEventListener('input', () => { state.most = FIRST; showAlerts(); });
by('more').addEventListener('click', () => { state.most += 400; showAlerts(); });
by('workload-text').addEventListener('input', showSurvey);
by('edge-text').addEventListener('input', showSurvey);
by('fold').addEventListener('change', () => { if (state.workload) sheet(); });
new ResizeObserver(() => { showNow(); if (state.tab === 'network') showSurvey(); }).observe(document.querySelector('main'));

// Each second, so that "events a second" falls when nothing comes; surveys while one is looked at.
setInterval(showNow, 1000);
setInterval(() => { if (!document.hidden && ['workloads', 'network', 'policies'].includes(state.tab)) { survey(); learn(); } }, AGAIN);
show(location.hash.slice(1) || 'now');
connect();
