/**
 * A client of a steppe policy server, in one file without dependencies: browsers, and Node from 18 on.
 *
 *     import { PolicyClient } from "./steppe-client.mjs";
 *
 *     const client = new PolicyClient("http://127.0.0.1:9900");
 *     const episode = await client.startEpisode();
 *     const action = await client.getAction(episode, [0.1, -0.2]);
 *     await client.logReturns(episode, 1.0);
 *     await client.endEpisode(episode, [0.3, -0.1]);
 *
 * What goes over the wire is told in docs/protocol.md. A certificate of the server's own, as `steppe serve --make-cert`
 * makes it, is trusted by Node where the variable NODE_EXTRA_CA_CERTS names it, and by browsers where it is installed.
 */

const PROTOCOL = "1";
const WINDOW = 64; // the server keeps the answers to this many of a client's newest requests
const ATTEMPTS = 3; // that fit into the timeout where no answer comes; after each the request is sent again
const PAUSES = [100, 2_000]; // milliseconds before the second attempt, and at most before a later one
const WAIT = new Set([429, 502, 503, 504]); // busy, or a proxy before a server that is being started

/**
 * What the server refused, or that it could not be reached.
 *
 * `status` is HTTP's, 0 where no answer came. `code` is one of the table in docs/protocol.md, or `unreachable`,
 * `closed`, `value` (what was passed cannot be sent). `requestId` finds the request in the server's log.
 */
export class PolicyClientError extends Error {
  /**
   * @param {string} message
   * @param {{status?: number, code?: string, requestId?: string | null, retryAfter?: number | null, cause?: unknown}} [what]
   */
  constructor(message, { status = 0, code = "unreachable", requestId = null, retryAfter = null, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "PolicyClientError";
    this.status = status;
    this.code = code;
    this.requestId = requestId;
    /** Seconds that the server asked to wait, where it did. */
    this.retryAfter = retryAfter;
  }
}

/**
 * Asks a policy server for actions and tells it what they earned.
 *
 * Calls may be made side by side. Those of one episode reach the server in the order of the calls, each when the one
 * before it has been answered. A request without an answer is sent again under the same number, which the server
 * carries out once, until `timeout`; likewise where the server is busy, after the seconds that it says.
 */
export class PolicyClient {
  #link;
  #identity;
  #timeout;
  /** @type {Local | null} */
  #local = null;
  #seq = 0;
  /** @type {Map<number, Promise<void>>} requests without an answer, the oldest first */
  #open = new Map();
  /** @type {Map<string, Promise<void>>} the end of the latest request of each episode */
  #latest = new Map();

  /**
   * @param {string} address `http://host:port` or, for many small requests, `ws://host:port`; `https:` and `wss:` with TLS;
   *   behind a proxy with the path that it has there.
   * @param {object} [options]
   * @param {string | (() => string | Promise<string>)} [options.token] what lets this client in, or what fetches it.
   * @param {number} [options.timeout] seconds for one call, all its attempts together.
   * @param {string} [options.client] a name that stays the same when this program starts again; by default a random one.
   * @param {number} [options.epoch] higher at each start of a program that keeps its name; by default the time.
   * @param {"local" | "remote"} [options.inferenceMode] `local`: actions are computed here, and what happened is sent in
   *   batches: of 1,000 steps, at the interval and by `close`. For flat observations and networks of dense layers.
   * @param {number} [options.updateInterval] seconds between looks for new weights, in local mode.
   * @param {string} [options.policy] that acts in local mode, where the server does not say it by itself.
   * @param {typeof WebSocket} [options.WebSocket] another one than the platform's.
   */
  constructor(address, options = {}) {
    const { token, timeout = 30, client = randomName(), epoch = Date.now(), ...rest } = options;
    const { inferenceMode = "remote", updateInterval = 10, policy, WebSocket = globalThis.WebSocket, ...unknown } = rest;
    for (const name of Object.keys(unknown)) {
      const known = "token, timeout, client, epoch, inferenceMode, updateInterval, policy, WebSocket";
      throw new TypeError(`PolicyClient has no option ${name}; it has ${known}`);
    }
    if (!["local", "remote"].includes(inferenceMode)) {
      throw new TypeError(`inferenceMode: expected "local" or "remote", got ${inferenceMode}`);
    }
    const url = new URL(address);
    if (!["http:", "https:", "ws:", "wss:"].includes(url.protocol)) {
      throw new TypeError(`address: expected http, https, ws or wss, got ${address}`);
    }
    const http = new Http(url.origin.replace(/^ws/, "http") + url.pathname.replace(/\/+$/, ""), token);
    this.#link = url.protocol.startsWith("ws") ? new Socket(http, token, WebSocket) : http;
    this.#identity = { client, epoch };
    this.#timeout = 1000 * timeout;
    if (inferenceMode === "local") {
      this.#local = new Local(1000 * updateInterval, policy, {
        spaces: () => this.spaces(),
        weights: (path, etag) => this.#persist((left) => http.file(path, etag, left)),
        // Until it is taken: nobody else has these steps.
        report: (items) => this.#numbered((numbers, left) => this.#link.ask("report", { ...numbers, items }, left), Infinity),
        end: (id) => this.#write("end", { episode_id: id, obs: null, truncated: true }, []),
      });
    }
  }

  /** Steps that the server did not want, in local mode. */
  get discarded() {
    return this.#local?.discarded ?? 0;
  }

  /**
   * Begins an episode.
   *
   * @param {string | null} [episodeId] by default the server makes one up.
   * @param {{trainingEnabled?: boolean}} [options] nothing is learned from an episode without training.
   * @returns {Promise<string>} the episode's id.
   */
  async startEpisode(episodeId = null, { trainingEnabled = true } = {}) {
    const fields = { training_enabled: trainingEnabled };
    if (episodeId !== null) fields.episode_id = episodeId;
    const answer = await this.#write("start", fields, episodeId === null ? [] : [episodeId]);
    this.#local?.begin(answer.episode_id, trainingEnabled);
    return answer.episode_id;
  }

  /**
   * The action for an observation; with many agents both are objects by agent.
   *
   * @param {string} episodeId
   * @param {any} obs numbers, arrays (also typed ones, or those of `array()`), objects for Dict spaces.
   * @param {{full?: boolean, reward?: any}} [options] `full`: `{action, step, logp, weightsVersion}` instead of the
   *   action alone; `reward`: what was earned since the last observation, which saves a call of `logReturns`.
   * @returns {Promise<any>}
   */
  async getAction(episodeId, obs, { full = false, reward } = {}) {
    const fields = { episode_id: episodeId, obs: plain(obs, "obs"), full, ...earned(reward) };
    if (this.#local) {
      const { full: _, ...item } = fields;
      const decision = await this.#inOrder([episodeId], () => this.#local.act(item));
      return full ? decision : decision.action;
    }
    const { action, step, logp, weights_version: weightsVersion } = await this.#write("act", fields, [episodeId]);
    return full ? { action, step, logp, weightsVersion } : action;
  }

  /**
   * Actions for observations of several episodes, in one request.
   *
   * @param {Record<string, any>} observations by episode.
   * @param {{full?: boolean, rewards?: Record<string, any>}} [options] as `getAction` has them; rewards by episode.
   * @returns {Promise<Record<string, any>>} by episode.
   */
  async getActions(observations, { full = false, rewards = {} } = {}) {
    const episodes = Object.keys(observations);
    if (!episodes.length) return {};
    if (this.#local) {
      const each = episodes.map((id) => this.getAction(id, observations[id], { full, reward: rewards[id] }));
      return Object.fromEntries((await Promise.all(each)).map((one, i) => [episodes[i], one]));
    }
    const acts = episodes.map((id) => {
      const path = `observations[${JSON.stringify(id)}]`;
      return { episode_id: id, obs: plain(observations[id], path), ...earned(rewards[id]) };
    });
    const answer = await this.#write("act_many", { acts, full }, episodes);
    const one = (action, i) => {
      const [step, logp, weightsVersion] = ["steps", "logps", "weights_versions"].map((name) => answer[name]?.[i]);
      return full ? { action, step, logp, weightsVersion } : action;
    };
    return Object.fromEntries(episodes.map((id, i) => [id, one(answer.actions[i], i)]));
  }

  /**
   * Says that the caller chose the action itself.
   *
   * @param {string} episodeId
   * @param {any} obs
   * @param {any} action
   * @param {{reward?: any}} [options]
   */
  async logAction(episodeId, obs, action, { reward } = {}) {
    const fields = { obs: plain(obs, "obs"), action: plain(action, "action"), ...earned(reward) };
    await this.#note("log_action", { episode_id: episodeId, ...fields });
  }

  /**
   * Says what was earned since the last observation; rewards add up until the next one.
   *
   * @param {string} episodeId
   * @param {any} reward a number; with many agents an object by agent.
   * @param {{info?: object, dones?: Record<string, boolean>, step?: number}} [options] `dones`: agents that have left;
   *   `step`: credits the decision of this number instead, as `getAction` gave it with `full`.
   */
  async logReturns(episodeId, reward, { info, dones, step } = {}) {
    const fields = { ...earned(reward), ...(info && { info: plain(info, "info") }), ...(dones && { dones: plain(dones, "dones") }) };
    if (step !== undefined) fields.step = step;
    await this.#note("log_returns", { episode_id: episodeId, ...fields });
  }

  /**
   * Ends an episode.
   *
   * @param {string} episodeId
   * @param {any} [obs] the last observation; null: the last known one.
   * @param {{truncated?: boolean, reward?: any}} [options] `truncated`: it was cut off, and would have gone on.
   */
  async endEpisode(episodeId, obs = null, { truncated = false, reward } = {}) {
    const fields = { obs: plain(obs, "obs"), truncated, ...earned(reward) };
    await this.#note("end", { episode_id: episodeId, ...fields });
  }

  /**
   * Drops an open episode: what was not learned of it yet will not be.
   *
   * @param {string} episodeId
   */
  async deleteEpisode(episodeId) {
    await this.#inOrder([episodeId], () =>
      this.#numbered((numbers, left) =>
        this.#link.http.send("DELETE", `/v1/episodes/${encodeURIComponent(episodeId)}?${new URLSearchParams(numbers)}`, null, left),
      ),
    );
  }

  /** What observations and actions must look like, and who acts. */
  spaces() {
    return this.#read("/v1/spaces");
  }

  /** How the server is. */
  health() {
    return this.#read("/v1/health");
  }

  /** The versions of the weights that the server keeps (scope admin). */
  versions() {
    return this.#read("/v1/versions");
  }

  /** Lets the server act with this version until `release` (scope admin). */
  rollback(version) {
    return this.#write("rollback", { version }, []);
  }

  /** Lets the server act with the newest weights again (scope admin). */
  release() {
    return this.#write("release", {}, []);
  }

  /**
   * Closes the connection; calls under way fail. In local mode what is left is sent first, and may be awaited. Episodes
   * stay as they are: they belong to the server.
   *
   * @returns {Promise<void>}
   */
  async close() {
    const left = this.#local?.close();
    if (left !== undefined) {
      const late = new PolicyClientError(`the last steps were not sent within ${this.#timeout / 1000} s`);
      let timer;
      const patience = new Promise((_, reject) => (timer = setTimeout(() => reject(late), this.#timeout)));
      await Promise.race([left, patience]).finally(() => {
        clearTimeout(timer);
        this.#link.close();
      });
    } else {
      this.#link.close();
    }
  }

  #note(verb, item) {
    const id = item.episode_id;
    if (this.#local) return this.#inOrder([id], () => this.#local.note({ verb, ...item }));
    return this.#write(verb, item, [id]);
  }

  #read(path) {
    return this.#persist((left) => this.#link.http.send("GET", path, null, left));
  }

  #write(verb, fields, episodes) {
    return this.#inOrder(episodes, () =>
      this.#numbered((numbers, left) => this.#link.ask(verb, { ...numbers, ...fields }, left)),
    );
  }

  #inOrder(episodes, send) {
    const answer = Promise.all(episodes.map((id) => this.#latest.get(id))).then(send);
    const done = answer.then(nothing, nothing).then(() => {
      for (const id of episodes) if (this.#latest.get(id) === done) this.#latest.delete(id);
    });
    for (const id of episodes) this.#latest.set(id, done);
    return answer;
  }

  async #numbered(send, patience = this.#timeout) {
    for (;;) {
      const [oldest] = this.#open;
      if (!oldest || this.#seq + 1 - oldest[0] < WINDOW) break;
      await oldest[1];
    }
    const seq = ++this.#seq;
    const answer = this.#persist((left) => send({ ...this.#identity, seq }, left), patience);
    const done = answer.then(nothing, nothing).then(() => this.#open.delete(seq));
    this.#open.set(seq, done);
    return answer;
  }

  async #persist(send, patience = this.#timeout) {
    const end = Date.now() + patience;
    for (let pause = PAUSES[0]; ; pause = Math.min(2 * pause, PAUSES[1])) {
      let failure;
      try {
        return await send(Math.max(1, Math.min(this.#timeout / ATTEMPTS, end - Date.now())));
      } catch (error) {
        failure = error;
      }
      const again = failure instanceof PolicyClientError && (failure.code === "unreachable" || WAIT.has(failure.status));
      // Many clients that lost one server shall not come back at the same moment.
      const wait = Math.max(1000 * (failure.retryAfter ?? 0), pause * (0.5 + Math.random()));
      if (!again || Date.now() + wait >= end) throw failure;
      await this.#link.http.sleep(wait);
    }
  }
}

/**
 * An array to be sent as bytes, which is shorter and faster than numbers: for images and the like.
 *
 * @param {Float32Array | Float64Array | Int8Array | Uint8Array | Int16Array | Uint16Array | Int32Array | Uint32Array} values
 * @param {number[]} [shape] in C order; by default one dimension.
 * @returns {{dtype: string, shape: number[], bytes: string}}
 */
export function array(values, shape = [values.length]) {
  const dtype = values.constructor.name.replace("Array", "").toLowerCase();
  if (!/^(float(32|64)|u?int(8|16|32))$/.test(dtype)) {
    throw new PolicyClientError(`array: expected a typed array of numbers, got ${values.constructor.name}`, { code: "value" });
  }
  if (shape.reduce((a, b) => a * b, 1) !== values.length) {
    throw new PolicyClientError(`array: ${values.length} values do not have the shape [${shape}]`, { code: "value" });
  }
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return { dtype, shape, bytes: btoa(text) };
}

/** One request over HTTP, once. */
class Http {
  #token;
  #underWay = new Set();
  #closed = false;

  constructor(base, token) {
    this.base = base;
    this.#token = token;
  }

  get http() {
    return this;
  }

  ask(verb, message, limit) {
    return this.send("POST", `/v1/${verb}`, JSON.stringify(message), limit);
  }

  async send(method, path, body, limit) {
    return this.#exchange(method, path, body, {}, limit, async (response) =>
      answered(response.status, await response.text(), response.headers),
    );
  }

  /** A file and its tag; null where it still is the one with this tag. */
  async file(path, etag, limit) {
    return this.#exchange("GET", path, null, etag && { "If-None-Match": etag }, limit, async (response) => {
      if (response.status === 304) return null;
      if (response.status !== 200) return answered(response.status, await response.text(), response.headers);
      return { content: await response.arrayBuffer(), etag: response.headers.get("ETag") };
    });
  }

  async #exchange(method, path, body, more, limit, read) {
    if (this.#closed) throw closed();
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), limit);
    this.#underWay.add(controller);
    try {
      const headers = { Accept: "application/json", ...(body !== null && { "Content-Type": "application/json" }), ...more };
      const token = await given(this.#token);
      if (token !== undefined) headers.Authorization = `Bearer ${token}`;
      const how = { redirect: "error", credentials: "omit", cache: "no-store", signal: controller.signal };
      return await read(await fetch(this.base + path, { method, headers, body, ...how }));
    } catch (error) {
      if (error instanceof PolicyClientError) throw error;
      if (this.#closed) throw closed();
      throw unreachable(this.base, controller.signal.aborted ? `no answer within ${limit / 1000} s` : why(error), error);
    } finally {
      clearTimeout(timer);
      this.#underWay.delete(controller);
    }
  }

  sleep(milliseconds) {
    if (this.#closed) return Promise.reject(closed());
    const controller = new AbortController();
    this.#underWay.add(controller);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, milliseconds);
      controller.signal.addEventListener("abort", () => {
        clearTimeout(timer);
        reject(closed());
      });
    }).finally(() => this.#underWay.delete(controller));
  }

  close() {
    this.#closed = true;
    for (const controller of this.#underWay) controller.abort();
  }
}

/** Requests over one WebSocket, which is opened when it is needed, also anew. */
class Socket {
  #token;
  #WebSocket;
  /** @type {Promise<Connection> | null} */
  #connection = null;

  constructor(http, token, WebSocket) {
    if (WebSocket === undefined) {
      throw new TypeError("this platform has no WebSocket: use an address with http:, Node 22, or the option WebSocket");
    }
    this.http = http;
    this.#token = token;
    this.#WebSocket = WebSocket;
  }

  async ask(verb, message, limit) {
    const end = Date.now() + limit;
    if (this.#connection === null) {
      const forget = () => {
        if (this.#connection === opening) this.#connection = null;
      };
      const opening = this.#open(limit, forget);
      this.#connection = opening;
      opening.catch(forget);
    }
    const connection = await this.#connection;
    return connection.ask(verb, message, Math.max(1, end - Date.now()));
  }

  close() {
    this.http.close();
    this.#connection?.then((connection) => connection.drop(closed()), nothing);
  }

  async #open(limit, forget) {
    // Asked first: a browser does not tell why a WebSocket was not opened.
    await this.http.send("GET", "/v1/health", null, limit);
    const token = await given(this.#token);
    const protocols = token === undefined ? ["steppe.v1"] : ["steppe.v1", `steppe.token.${token}`];
    const socket = new this.#WebSocket(`${this.http.base.replace(/^http/, "ws")}/v1/socket`, protocols);
    return new Promise((resolve, reject) => {
      const connection = new Connection(this.http.base, socket, (error) => {
        clearTimeout(timer);
        forget();
        reject(error);
      });
      const timer = setTimeout(() => connection.drop(unreachable(this.http.base, "the WebSocket was not opened")), limit);
      socket.onopen = () => {
        clearTimeout(timer);
        resolve(connection);
      };
    });
  }
}

/** A WebSocket and what waits for an answer from it. */
class Connection {
  #base;
  #socket;
  #ended;
  #next = 0;
  #waiting = new Map();

  constructor(base, socket, ended) {
    this.#base = base;
    this.#socket = socket;
    this.#ended = ended;
    socket.onmessage = ({ data }) => this.#hear(data);
    // Before it is open some platforms only tell of an error.
    socket.onerror = () => this.drop(unreachable(base, "the WebSocket failed"));
    socket.onclose = ({ code, reason }) =>
      this.drop(unreachable(base, `the WebSocket was closed (${code}${reason ? `: ${reason}` : ""})`));
  }

  ask(verb, message, limit) {
    return new Promise((resolve, reject) => {
      const id = ++this.#next;
      // A connection that says nothing may be dead: another one is opened for the next attempt.
      const silent = () => this.drop(unreachable(this.#base, `no answer within ${limit / 1000} s`));
      this.#waiting.set(id, { resolve, reject, timer: setTimeout(silent, limit) });
      this.#socket.send(JSON.stringify({ ...message, verb, id }));
    });
  }

  drop(error) {
    this.#socket.onclose = this.#socket.onerror = this.#socket.onmessage = null;
    this.#socket.close();
    this.#ended(error);
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(error);
    }
    this.#waiting.clear();
  }

  #hear(data) {
    let answer;
    try {
      answer = JSON.parse(data);
    } catch {
      return; // no message of ours; what waits for one is sent again
    }
    const { id, status, ...body } = answer;
    const waiting = this.#waiting.get(id);
    if (waiting === undefined) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    try {
      waiting.resolve(accepted(status, body));
    } catch (error) {
      waiting.reject(error);
    }
  }
}

const BATCH = 1_000; // steps

/** Decides here, with the server's weights, and reports in batches, one after the other. */
class Local {
  discarded = 0;
  #interval;
  #policy;
  #server;
  #spaces = null;
  #networks = new Map();
  #due = Number.NEGATIVE_INFINITY;
  #renewing = null;
  #episodes = new Map();
  #batch = newBatch();
  /** @type {Promise<void> | null} */
  #sending = null;
  #failure = null;

  constructor(interval, policy, server) {
    this.#interval = interval;
    this.#policy = policy;
    this.#server = server;
  }

  begin(id, training) {
    // Steps that the server did not want leave a gap: what follows is then another episode there.
    this.#episodes.set(id, { id, training, steps: 0, begun: 0 });
  }

  async act({ episode_id: id, obs, reward }) {
    const episode = this.#episode(id);
    await this.#renew();
    const agents = this.#spaces.multi_agent ? Object.keys(obs) : [null];
    for (const agent of agents) await this.#network(agent);
    const chosen = agents.map((agent) => this.#decide(agent, agent === null ? obs : obs[agent]));
    const told = (name) =>
      this.#spaces.multi_agent ? Object.fromEntries(agents.map((agent, i) => [agent, chosen[i][name]])) : chosen[0][name];
    const [action, sample, logp, version] = ["action", "sample", "logp", "version"].map(told);
    this.#add(episode, { verb: "act", obs, sample, logp, weights_version: version, ...earned(reward) }, 1);
    return { action, step: episode.steps++, logp, weightsVersion: version };
  }

  async note({ episode_id: id, ...item }) {
    const episode = this.#episode(id);
    await this.#renew();
    if (item.step !== undefined) item.step -= episode.begun;
    if (!(item.step < 0)) this.#add(episode, item, item.verb === "log_action" ? 1 : 0);
    if (item.verb === "log_action") episode.steps++;
    if (item.verb === "end") this.#episodes.delete(id);
  }

  async close() {
    await this.#sending;
    this.#flush();
    await this.#sending;
    this.#raise();
  }

  #episode(id) {
    this.#raise();
    const episode = this.#episodes.get(id);
    if (episode !== undefined) return episode;
    const message = `this client has not begun ${id}, or has ended it: in local mode episodes are its own`;
    throw new PolicyClientError(message, { status: 404, code: "unknown_episode" });
  }

  #raise() {
    const failure = this.#failure;
    this.#failure = null;
    if (failure) throw failure;
  }

  #add(episode, item, steps) {
    const batch = this.#batch;
    const whole = { ...item, episode_id: episode.id };
    batch.items.push(whole);
    batch.size += JSON.stringify(whole).length;
    batch.steps += steps;
    batch.touched.add(episode);
  }

  async #renew() {
    this.#spaces ??= await this.#server.spaces();
    const full = this.#batch.steps >= BATCH || 2 * this.#batch.size > this.#spaces.body_limit;
    if (full && this.#sending) await this.#sending;
    if (full) this.#flush();
    if (Date.now() < this.#due) return;
    this.#renewing ??= this.#update().finally(() => (this.#renewing = null));
    await this.#renewing;
  }

  async #update() {
    if (!this.#sending) this.#flush();
    await Promise.all([...this.#networks.keys()].map((name) => this.#load(name)));
    this.#due = Date.now() + this.#interval;
  }

  #flush() {
    const batch = this.#batch;
    if (!batch.items.length) return;
    this.#batch = newBatch();
    if (this.#spaces.training) this.#sending = this.#send(batch).finally(() => (this.#sending = null));
  }

  async #send(batch) {
    try {
      const { weights_version: newest } = await this.#server.report(batch.items);
      const lag = this.#spaces.max_weight_lag;
      const old = [...this.#networks.values()].some(({ network }) => newest - network.version >= Math.max(lag, 1));
      if (lag !== null && old) this.#due = Number.NEGATIVE_INFINITY; // what these decide would soon be refused
    } catch (error) {
      if (error.code !== "closed") await this.#discard(batch);
      if (error.code !== "weights_too_old") this.#failure = error;
    }
  }

  /** Does without what was refused; open episodes, which have a gap now, go on as others. */
  async #discard({ steps, touched }) {
    const later = this.#batch;
    this.#batch = newBatch();
    this.discarded += steps + later.steps;
    this.#due = Number.NEGATIVE_INFINITY;
    const gaps = [...new Set([...touched, ...later.touched])];
    const ended = gaps.map((episode) => episode.id);
    const open = new Set(this.#episodes.values());
    for (const episode of gaps.filter((one) => open.has(one))) {
      episode.id = randomName() + randomName();
      episode.begun = episode.steps;
      this.#add(episode, { verb: "start", training_enabled: episode.training }, 0);
    }
    await Promise.allSettled(ended.map((id) => this.#server.end(id))); // it may be unknown there
  }

  #nameFor(agent) {
    const { policies, policy_of: known, multi_agent: many } = this.#spaces;
    const names = Object.keys(policies);
    const name = this.#policy ?? (many ? known[agent] : Object.values(known)[0]) ?? (names.length === 1 ? names[0] : null);
    if (name !== null) return name;
    throw new PolicyClientError(`which of ${names} acts for ${agent}? Give the option policy`, { code: "value" });
  }

  async #network(agent) {
    const name = this.#nameFor(agent);
    if (!this.#networks.has(name)) await this.#load(name);
  }

  async #load(name) {
    const known = this.#networks.get(name);
    const found = await this.#server.weights(`/v1/weights?policy=${encodeURIComponent(name)}`, known?.etag);
    if (found !== null) this.#networks.set(name, { network: new Network(found.content), etag: found.etag });
  }

  #decide(agent, obs) {
    return this.#networks.get(this.#nameFor(agent)).network.decide(obs);
  }
}

function newBatch() {
  return { items: [], size: 0, steps: 0, touched: new Set() };
}

const ACTIVATIONS = {
  tanh: Math.tanh,
  relu: (x) => Math.max(x, 0),
  swish: (x) => x / (1 + Math.exp(-x)),
  silu: (x) => x / (1 + Math.exp(-x)),
  elu: (x) => (x > 0 ? x : Math.expm1(x)),
  linear: (x) => x,
};

/** A policy that is computed here: "Computing actions" of docs/protocol.md, for one array in and one out. */
class Network {
  #layers;
  #activation;
  #normalize;
  #size;
  #shape;
  #choose;
  #free;
  #bounded;

  /** @param {ArrayBuffer} content a safetensors file. */
  constructor(content) {
    const begin = 8 + Number(new DataView(content).getBigUint64(0, true));
    const { __metadata__: texts, ...entries } = JSON.parse(new TextDecoder().decode(new Uint8Array(content, 8, begin - 8)));
    const [network, exploration, scalars] = ["network", "exploration", "scalars"].map((name) => JSON.parse(texts[name]));
    const numbers = ({ data_offsets: [from, to] }) => new Float32Array(content.slice(begin + from, begin + to));
    const arrays = Object.fromEntries(Object.entries(entries).map(([name, entry]) => [name, numbers(entry)]));
    this.version = JSON.parse(texts.version);
    check(network, exploration);
    const { observation, action, mlp } = network;
    this.#shape = observation.shape;
    this.#size = observation.shape.reduce((a, b) => a * b, 1);
    this.#normalize = normalizer(arrays);
    this.#layers = mlp.sizes.slice(1).map((_, i) => [arrays[`mlp.weights.${i}`], arrays[`mlp.biases.${i}`]]);
    this.#activation = ACTIVATIONS[mlp.activation];
    this.#free = network.free_log_std ? [...arrays.log_std] : [];
    this.#bounded = network.bounded_log_std || 0;
    this.#choose = action.kind === "Box" ? gaussian(action, network.distribution, exploration) : discrete(action, exploration, scalars);
  }

  decide(obs) {
    let x = [obs].flat(Number.POSITIVE_INFINITY);
    if (x.length !== this.#size || x.some((value) => typeof value !== "number" && typeof value !== "boolean")) {
      const message = `obs: expected ${this.#size} numbers of shape [${this.#shape}], got ${JSON.stringify(obs)?.slice(0, 80)}`;
      throw new PolicyClientError(message, { code: "out_of_space" });
    }
    x = this.#normalize(x.map(Number));
    this.#layers.forEach(([weights, biases], i) => {
      const before = i ? x.map(this.#activation) : x;
      x = Array.from(biases, (bias, out) => before.reduce((sum, value, k) => sum + value * weights[k * biases.length + out], bias));
    });
    const bounded = x.length - this.#bounded;
    x = x.map((value, i) => (i < bounded ? value : Math.min(Math.max(value, -20), 2)));
    return { ...this.#choose([...x, ...this.#free]), version: this.version };
  }
}

/** Refuses what is not computed here. */
function check(network, exploration) {
  const { kind, encoder, observation, action, mlp, distribution } = network;
  const odd = ["torso", "scores", "masked", "support"].filter((name) => network[name]);
  odd.push(...["own", "autoregressive"].filter((name) => distribution[name]));
  if (kind !== "actor" || encoder.kind !== "flat" || !["Box", "MultiBinary"].includes(observation.kind)) odd.push("observations");
  if (!["Box", "Discrete", "MultiDiscrete"].includes(action.kind)) odd.push(`actions of kind ${action.kind}`);
  if (!(mlp.activation in ACTIVATIONS)) odd.push(mlp.activation);
  if ((network.framestack ?? 1) > 1) odd.push("framestack");
  if (![undefined, "sampled", "epsilon_greedy"].includes(exploration?.kind)) odd.push(exploration.kind);
  if (!odd.length) return;
  const message = `this policy cannot be computed here (${odd.join(", ")}): use inferenceMode "remote"`;
  throw new PolicyClientError(message, { code: "not_local" });
}

function normalizer(arrays) {
  const [count, mean, m2] = ["count", "mean", "m2"].map((name) => arrays[`normalizer.obs.${name}`]);
  if (count === undefined) return (x) => x;
  const known = count[0] >= 2;
  const scale = Array.from(m2, (value) => (known ? 1 / Math.sqrt(value / count[0] + 1e-8) : 1));
  const one = (value, i) => (Math.min(Math.max(value, -1e14), 1e14) - (known ? mean[i] : 0)) * scale[i];
  return (x) => x.map((value, i) => Math.min(Math.max(one(value, i), -10), 10));
}

/** Numbers in the open interval from 0 to 1. */
function uniform() {
  return Math.max(Math.random(), 2 ** -53);
}

function discrete(space, exploration, scalars) {
  const counts = space.kind === "Discrete" ? [space.n] : [space.nvec].flat(Number.POSITIVE_INFINITY);
  const starts = space.kind === "Discrete" ? [space.start] : [space.start].flat(Number.POSITIVE_INFINITY);
  const pick = exploration?.kind === "epsilon_greedy" ? greedy(scalars.epsilon ?? 0) : exploration ? sampled : likeliest;
  return (x) => {
    let logp = 0;
    let from = 0;
    const sample = counts.map((n) => {
      const [choice, one] = pick(x.slice(from, (from += n)));
      logp += one;
      return choice;
    });
    const action = sample.map((choice, i) => choice + starts[i % starts.length]);
    const formed = (values) => (space.kind === "Discrete" ? values[0] : shaped(values, space.shape));
    return { action: formed(action), sample: formed(sample), logp };
  };
}

function sampled(logits) {
  const most = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp(logit - most));
  const sum = weights.reduce((a, b) => a + b);
  let left = uniform() * sum;
  let choice = weights.findIndex((weight) => (left -= weight) <= 0 && weight > 0);
  if (choice < 0) choice = weights.findLastIndex((weight) => weight > 0);
  return [choice, Math.log(weights[choice] / sum)];
}

function likeliest(logits) {
  const most = Math.max(...logits);
  const sum = logits.reduce((total, logit) => total + Math.exp(logit - most), 0);
  return [logits.indexOf(most), -Math.log(sum)];
}

function greedy(epsilon) {
  return (values) => {
    const best = values.indexOf(Math.max(...values));
    const choice = Math.random() < epsilon ? Math.floor(Math.random() * values.length) : best;
    return [choice, Math.log(epsilon / values.length + (1 - epsilon) * (choice === best))];
  };
}

function gaussian(space, { squash = false, normalize = true, clip = true }, exploration) {
  const size = space.shape.reduce((a, b) => a * b, 1);
  const bound = (value, i) => (Array.isArray(value) ? value.flat(Number.POSITIVE_INFINITY)[i] : value);
  const known = (value) => (typeof value === "number" && Math.abs(value) < 1e9 ? value : null);
  const bounds = Array.from({ length: size }, (_, i) => [known(bound(space.low, i)), known(bound(space.high, i))]);
  return (x) => {
    let logp = 0;
    const sample = bounds.map(([low, high], i) => {
      const z = exploration ? Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * Math.random()) : 0;
      const s = x[i] + Math.exp(x[size + i]) * z;
      logp -= (z * z + Math.log(2 * Math.PI)) / 2 + x[size + i];
      if (squash && low !== null && high !== null) logp -= 2 * (Math.LN2 - s - softplus(-2 * s));
      return s;
    });
    const action = sample.map((s, i) => {
      const [low, high] = bounds[i];
      const finite = low !== null && high !== null;
      const whole = !space.dtype.startsWith("float");
      let value = squash && finite ? Math.tanh(s) : s;
      if (finite && (squash || normalize)) value = (value * (high - low)) / 2 + (high + low) / 2;
      if (clip || squash || whole) value = Math.min(Math.max(value, low ?? -Infinity), high ?? Infinity);
      return whole ? Math.round(value) : value;
    });
    return { action: shaped(action, space.shape), sample: shaped(sample, space.shape), logp };
  };
}

function softplus(x) {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}

/** A flat list in C order as nested lists. */
function shaped(values, shape) {
  if (!shape.length) return values[0];
  if (shape.length === 1) return values;
  const size = values.length / shape[0];
  return Array.from({ length: shape[0] }, (_, i) => shaped(values.slice(i * size, (i + 1) * size), shape.slice(1)));
}

function answered(status, text, headers) {
  let body;
  try {
    body = JSON.parse(text);
  } catch (cause) {
    if (status !== 200) body = { code: `http_${status}`, message: text.slice(0, 200) };
    else throw new PolicyClientError(`not a policy server: ${text.slice(0, 100)}`, { status, code: "malformed", cause });
  }
  const protocol = headers.get("Steppe-Protocol");
  if (protocol !== null && protocol !== PROTOCOL) {
    const message = `the server speaks version ${protocol} of the protocol, this client ${PROTOCOL}: update the client`;
    throw new PolicyClientError(message, { status, code: "protocol" });
  }
  const seconds = Number.parseFloat(headers.get("Retry-After") ?? "");
  return accepted(status, Number.isFinite(seconds) ? { retry_after: seconds, ...body } : body);
}

function accepted(status, body) {
  if (status === 200) return body;
  const { message, code, request_id: requestId = null, retry_after: retryAfter = null } = body ?? {};
  throw new PolicyClientError(`${message ?? "refused"} (${status} ${code})`, { status, code, requestId, retryAfter });
}

function unreachable(base, how, cause) {
  const message = `${base} cannot be reached: ${how}; is the server running, and the address right?`;
  return new PolicyClientError(message, { cause });
}

function closed() {
  return new PolicyClientError("the client was closed: make another one", { code: "closed" });
}

/** What JSON can say of a value: typed arrays as lists, and no number that is none. */
function plain(value, path) {
  if (typeof value === "number") {
    if (Number.isFinite(value)) return value;
    throw new PolicyClientError(`${path}: expected a finite number, got ${value}`, { code: "value" });
  }
  if (typeof value === "bigint") return Number(value);
  if (value === undefined) throw new PolicyClientError(`${path}: expected a value, got undefined`, { code: "value" });
  if (Array.isArray(value)) return value.map((item, i) => plain(item, `${path}[${i}]`));
  if (ArrayBuffer.isView(value)) return Array.from(value, (item, i) => plain(item, `${path}[${i}]`));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item, `${path}.${key}`)]));
}

function earned(reward) {
  return reward === undefined ? {} : { reward: plain(reward, "reward") };
}

function given(token) {
  return typeof token === "function" ? token() : token;
}

function why(error) {
  return error.cause?.message || error.cause?.code || error.message;
}

function randomName() {
  const digit = () => Math.floor(16 * Math.random()).toString(16);
  return Array.from({ length: 16 }, digit).join("");
}

function nothing() {}
