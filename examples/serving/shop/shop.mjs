// The page of the small shop. A visit is an episode, a recommendation is an action; what the shopper does is what
// it earned. Of a product that was shown earlier the shop hears late: `step` says which decision is to be credited.

import { PolicyClient } from "./steppe-client.mjs";

const at = (id) => document.getElementById(id);
const { address, token, topics, products, pages, earns } = await (await fetch("./shop.json")).json();
// A WebSocket, or with "?over=http" a request for each question.
const over = new URLSearchParams(location.search).get("over") ?? "ws";
const client = new PolicyClient(address.replace(/^http/, over), { token });

let visit = null; // { episode, topic, shown: [{ product, step, looked }] }

const DRAWN = [
  '<path d="M70 60h70l10 74H60z" fill="#4d8f73"/><path d="M66 92 28 62l-14 6" fill="none" stroke="#4d8f73" stroke-width="12"/><path d="M140 70c40-6 44 48 8 52" fill="none" stroke="#2f6b4f" stroke-width="10"/><path d="M82 60c4-24 42-24 46 0" fill="none" stroke="#2f6b4f" stroke-width="8"/>',
  '<path d="M60 92V52m40 40V38m40 54V52" stroke="#2f6b4f" stroke-width="6"/><path d="M60 62c-22 0-24-18-24-18s24-4 24 18zm40-12c24 0 26-22 26-22s-26-4-26 22zm40 12c-20 0-22-18-22-18s22-4 22 18z" fill="#6aa774"/><path d="M30 92h140l-12 46H42z" fill="#a8683f"/><path d="M30 92h140v12H30z" fill="#8a5230"/>',
  '<circle cx="82" cy="80" r="54" fill="#3a3f44"/><circle cx="82" cy="80" r="42" fill="#50575d"/><path d="M132 70h58v20h-58z" fill="#3a3f44"/><circle cx="180" cy="80" r="4" fill="#f3e3c8"/><ellipse cx="80" cy="84" rx="24" ry="19" fill="#fff"/><circle cx="84" cy="82" r="9" fill="#e9a23b"/>',
  '<path d="M16 66h116v34H34c-12 0-18-16-18-34z" fill="#b9c2c4"/><path d="M16 92c3 5 9 8 18 8h98v-8z" fill="#8f9b9e"/><path d="M132 64h52c8 0 8 34 0 34h-52z" fill="#8a5230"/><circle cx="146" cy="81" r="4" fill="#f3e3c8"/><circle cx="170" cy="81" r="4" fill="#f3e3c8"/>',
  '<path d="M100 24 184 134H16z" fill="#d9813b"/><path d="M100 24 184 134H128z" fill="#b9642a"/><path d="M100 62 126 134H74z" fill="#5b3a22"/><path d="M100 62v72H74z" fill="#7a5030"/><path d="M8 136h184" stroke="#6aa774" stroke-width="6"/>',
  '<path d="M70 50c0-36 60-36 60 0" fill="none" stroke="#2c4a63" stroke-width="8"/><rect x="52" y="42" width="96" height="98" rx="24" fill="#3f6b8f"/><rect x="66" y="92" width="68" height="40" rx="8" fill="#2c4a63"/><path d="M52 72h96" stroke="#2c4a63" stroke-width="6"/><rect x="92" y="64" width="16" height="20" rx="3" fill="#e9a23b"/>',
  '<ellipse cx="84" cy="136" rx="44" ry="8" fill="#3a3f44"/><path d="M84 134 62 78l52-40" fill="none" stroke="#50575d" stroke-width="7"/><path d="m100 26 50 34-46 18z" fill="#c2503d"/><path d="m104 78 46-18 28 70h-62z" fill="#f9d77e" opacity=".55"/><circle cx="62" cy="78" r="6" fill="#3a3f44"/>',
  '<rect x="52" y="22" width="100" height="118" rx="6" fill="#7a4f86"/><rect x="64" y="22" width="88" height="118" rx="6" fill="#9467a1"/><rect x="84" y="46" width="50" height="26" rx="3" fill="#faf7f0"/><path d="M92 56h34m-34 8h22" stroke="#7a4f86" stroke-width="3"/><path d="M44 42h18M44 66h18M44 90h18M44 114h18" stroke="#3a3f44" stroke-width="5"/>',
].map((shapes) => `<svg viewBox="0 0 200 160" aria-hidden="true">${shapes}</svg>`);

/** What the policy sees of the visit. */
function obs() {
  const flags = (chosen) => products.map((_, product) => Number(chosen(product)));
  return {
    action_mask: flags((product) => !visit.shown.some((one) => one.product === product)),
    opened: flags((product) => visit.shown.some((one) => one.product === product && one.looked)),
    topic: topics.indexOf(visit.topic),
  };
}

async function enter(topic) {
  if (visit) await client.endEpisode(visit.episode, obs());
  visit = { episode: await client.startEpisode(), topic, shown: [] };
  await recommend();
}

async function recommend() {
  const { action, step, weightsVersion } = await client.getAction(visit.episode, obs(), { full: true });
  visit.shown.push({ product: action, step, looked: false });
  say(`Recommendation ${step + 1} of this visit, by version ${weightsVersion} of the policy.`);
}

async function look(one) {
  one.looked = true;
  await client.logReturns(visit.episode, earns.look, { step: one.step });
  say(`You had a look at the ${name(one)}: recommendation ${one.step + 1} earned ${earns.look}.`);
}

async function buy(one) {
  await client.logReturns(visit.episode, earns.buy, { step: one.step });
  await client.endEpisode(visit.episode, obs());
  say(`The ${name(one)} is yours: recommendation ${one.step + 1} earned ${earns.buy}. Choose what you came for to visit again.`);
  visit = null;
}

const name = (one) => products[one.product].name.toLowerCase();

function say(text) {
  at("state").textContent = text;
}

/** Does one thing at a time: buttons rest meanwhile. A visit that nobody ends is closed by the server after a while. */
async function act(what) {
  for (const button of document.querySelectorAll("button")) button.disabled = true;
  try {
    await what();
  } catch (error) {
    visit = null;
    say(`The shop cannot be asked: ${error.message}. Choose what you came for to try again.`);
  }
  draw();
}

function draw() {
  const now = visit?.shown.at(-1);
  for (const button of at("topics").children) {
    button.disabled = false;
    button.ariaPressed = String(visit?.topic === button.textContent);
  }
  at("buy").disabled = !now;
  at("look").disabled = !now || now.looked;
  at("next").disabled = !now || visit.shown.length >= pages;
  if (!now) return;
  const product = products[now.product];
  at("picture").innerHTML = DRAWN[now.product];
  at("why").textContent = `Picked for you · ${product.topic}`;
  at("name").textContent = product.name;
  at("note").textContent = product.note;
  at("price").textContent = `€ ${product.price}`;
  at("shelf").replaceChildren(...visit.shown.slice(0, -1).map(card));
}

function card(one) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const title = document.createElement("b");
  title.textContent = products[one.product].name;
  button.textContent = one.looked ? "Looked at" : "Look closer";
  button.disabled = one.looked;
  button.onclick = () => act(() => look(one));
  item.innerHTML = DRAWN[one.product];
  item.append(title, button);
  return item;
}

for (const topic of topics) {
  const button = document.createElement("button");
  button.textContent = topic;
  button.onclick = () => act(() => enter(topic));
  at("topics").append(" ", button);
}
at("buy").onclick = () => act(() => buy(visit.shown.at(-1)));
at("look").onclick = () => act(() => look(visit.shown.at(-1)));
at("next").onclick = () => act(recommend);
await act(() => enter(topics[0]));
