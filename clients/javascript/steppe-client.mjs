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
   * @param {typeof WebSocket} [options.WebSocket] another one than the platform's.
   */
  constructor(address, options = {}) {
    const { token, timeout = 30, client = randomName(), epoch = Date.now(), ...rest } = options;
    const { WebSocket = globalThis.WebSocket, ...unknown } = rest;
    for (const name of Object.keys(unknown)) {
      throw new TypeError(`PolicyClient has no option ${name}; it has token, timeout, client, epoch, WebSocket`);
    }
    const url = new URL(address);
    if (!["http:", "https:", "ws:", "wss:"].includes(url.protocol)) {
      throw new TypeError(`address: expected http, https, ws or wss, got ${address}`);
    }
    const http = new Http(url.origin.replace(/^ws/, "http") + url.pathname.replace(/\/+$/, ""), token);
    this.#link = url.protocol.startsWith("ws") ? new Socket(http, token, WebSocket) : http;
    this.#identity = { client, epoch };
    this.#timeout = 1000 * timeout;
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
    await this.#write("log_action", { episode_id: episodeId, ...fields }, [episodeId]);
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
    await this.#write("log_returns", { episode_id: episodeId, ...fields }, [episodeId]);
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
    await this.#write("end", { episode_id: episodeId, ...fields }, [episodeId]);
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

  /** Closes the connection; calls under way fail. Episodes stay as they are: they belong to the server. */
  close() {
    this.#link.close();
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

  async #numbered(send) {
    for (;;) {
      const [oldest] = this.#open;
      if (!oldest || this.#seq + 1 - oldest[0] < WINDOW) break;
      await oldest[1];
    }
    const seq = ++this.#seq;
    const answer = this.#persist((left) => send({ ...this.#identity, seq }, left));
    const done = answer.then(nothing, nothing).then(() => this.#open.delete(seq));
    this.#open.set(seq, done);
    return answer;
  }

  async #persist(send) {
    const end = Date.now() + this.#timeout;
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
    if (this.#closed) throw closed();
    const controller = new AbortController();
    const timer = setTimeout(() => controller.abort(), limit);
    this.#underWay.add(controller);
    try {
      const headers = { Accept: "application/json", ...(body !== null && { "Content-Type": "application/json" }) };
      const token = await given(this.#token);
      if (token !== undefined) headers.Authorization = `Bearer ${token}`;
      const how = { redirect: "error", credentials: "omit", cache: "no-store", signal: controller.signal };
      const response = await fetch(this.base + path, { method, headers, body, ...how });
      const text = await response.text();
      return answered(response.status, text, response.headers);
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
