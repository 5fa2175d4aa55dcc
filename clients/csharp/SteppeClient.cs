// A client of a steppe policy server in one file without packages, for .NET Standard 2.1: Unity from 2021.2 on (but
// not WebGL, which has no sockets), .NET Core, Mono. C# 7.3. What goes over the wire is told in docs/protocol.md.
//
//     using (var client = new PolicyClient("ws://127.0.0.1:9900"))
//     {
//         string episode = await client.StartEpisodeAsync();
//         object action = await client.GetActionAsync(episode, new[] { 0.1f, -0.2f });
//         await client.LogReturnsAsync(episode, 1.0);
//         await client.EndEpisodeAsync(episode, new[] { 0.3f, -0.1f });
//     }
//
// In a game loop, which may not wait, a Crowd asks for all agents at once and is polled each frame.

using System;
using System.Collections;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Net.Http;
using System.Net.Http.Headers;
using System.Net.Security;
using System.Net.WebSockets;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Threading;
using System.Threading.Tasks;

namespace Steppe
{
    /// <summary>What the server refused, or that it could not be reached.</summary>
    public sealed class PolicyClientException : Exception
    {
        public PolicyClientException(string message, string code = Unreachable, int status = 0, string requestId = null,
            double? retryAfter = null, Exception cause = null) : base(message, cause)
        {
            Code = code;
            Status = status;
            RequestId = requestId;
            RetryAfter = retryAfter;
        }

        public const string Unreachable = "unreachable";
        public const string Closed = "closed";

        /// <summary>One of the table in docs/protocol.md, or "unreachable", "closed", or "value": what was passed
        /// cannot be sent.</summary>
        public string Code { get; }

        /// <summary>HTTP's; 0 where no answer came.</summary>
        public int Status { get; }

        /// <summary>Finds the request in the server's log.</summary>
        public string RequestId { get; }

        /// <summary>Seconds that the server asked to wait, where it did.</summary>
        public double? RetryAfter { get; }
    }

    public sealed class PolicyClientOptions
    {
        /// <summary>What lets this client in; none by default.</summary>
        public string Token { get; set; }

        /// <summary>Path of the server's own certificate (PEM), where the system does not know who signed it: the cert.pem
        /// of `steppe serve --make-cert`. No other is then trusted. Mono's WebSocket does not know of this: there, take an
        /// address with https.</summary>
        public string Certificate { get; set; }

        /// <summary>For one call, all its attempts together.</summary>
        public TimeSpan Timeout { get; set; } = TimeSpan.FromSeconds(30);

        /// <summary>A name that stays the same when this program starts again; by default a random one.</summary>
        public string Client { get; set; } = Guid.NewGuid().ToString("N").Substring(0, 16);

        /// <summary>Higher at each start of a program that keeps its name; by default the time.</summary>
        public long Epoch { get; set; } = DateTimeOffset.UtcNow.ToUnixTimeMilliseconds();
    }

    /// <summary>An action with how it was chosen; where there are many agents Logp and WeightsVersion are
    /// dictionaries by agent.</summary>
    public sealed class Decision
    {
        internal Decision(object action, object step, object logp, object weightsVersion)
        {
            Action = action;
            Step = Convert.ToInt64(step, CultureInfo.InvariantCulture);
            Logp = logp;
            WeightsVersion = weightsVersion;
        }

        public object Action { get; }
        public long Step { get; }
        public object Logp { get; }
        public object WeightsVersion { get; }
    }

    /// <summary>Asks a policy server for actions and tells it what they earned.
    ///
    /// No call waits: each encodes what it was given, so that arrays may be used again at once, and the rest happens on
    /// threads of the pool. Calls may be made side by side. Those of one episode reach the server in the order of the
    /// calls, each when the one before it has been answered. A request without an answer is sent again under the same
    /// number, which the server carries out once, until the timeout; likewise where the server is busy, after the
    /// seconds that it says. What fails in the end is a PolicyClientException.
    ///
    /// Observations, actions and rewards are numbers, bools, arrays and lists, and dictionaries by string; with many
    /// agents dictionaries by agent. What comes back is long, double, bool, string, null, List&lt;object&gt; and
    /// Dictionary&lt;string, object&gt;; Json.Int, Json.Ints and Json.Floats convert actions.</summary>
    public sealed class PolicyClient : IDisposable
    {
        private const int Window = 64; // the server keeps the answers to this many of a client's newest requests
        private const int Attempts = 3; // that fit into the timeout where no answer comes
        private static readonly HashSet<int> Wait = new HashSet<int> { 429, 502, 503, 504 }; // busy, or a proxy alone

        private readonly HttpLink _http;
        private readonly ILink _link;
        private readonly PolicyClientOptions _options;
        private readonly object _lock = new object();
        private readonly SortedDictionary<long, Task> _open = new SortedDictionary<long, Task>();
        private readonly Dictionary<string, Task> _latest = new Dictionary<string, Task>();
        private readonly Random _random = new Random();
        private long _seq;

        /// <param name="address">"ws://host:port", where all requests share one connection, or "http://host:port"; "wss:"
        /// and "https:" with TLS; behind a proxy with the path that it has there.</param>
        public PolicyClient(string address, PolicyClientOptions options = null)
        {
            _options = options ?? new PolicyClientOptions();
            var uri = new Uri(address);
            if (!new[] { "http", "https", "ws", "wss" }.Contains(uri.Scheme))
                throw new ArgumentException("address: expected http, https, ws or wss, got " + address);
            var trust = _options.Certificate == null ? null : new Trust(_options.Certificate);
            string place = "://" + uri.Authority + uri.AbsolutePath.TrimEnd('/');
            _http = new HttpLink(uri.Scheme.Replace("ws", "http") + place, _options.Token, trust);
            _link = uri.Scheme.StartsWith("ws", StringComparison.Ordinal)
                ? new SocketLink(_http, uri.Scheme + place, _options.Token, trust) : (ILink)_http;
        }

        /// <summary>Begins an episode; its id is the answer, by default one that the server makes up. Nothing is
        /// learned from an episode without training.</summary>
        public async Task<string> StartEpisodeAsync(string episodeId = null, bool trainingEnabled = true)
        {
            var fields = new Fields().Add("training_enabled", trainingEnabled);
            if (episodeId != null) fields.Add("episode_id", episodeId);
            string[] episodes = episodeId == null ? new string[0] : new[] { episodeId };
            var answer = await Write("start", fields, episodes).ConfigureAwait(false);
            return (string)Json.Get(answer, "episode_id");
        }

        /// <summary>The action for an observation. The reward is what was earned since the last one, which saves a call
        /// of LogReturnsAsync.</summary>
        public async Task<object> GetActionAsync(string episodeId, object obs, object reward = null)
        {
            var fields = new Fields().Add("episode_id", episodeId).Add("obs", obs).AddIfGiven("reward", reward);
            return Json.Get(await Write("act", fields, episodeId).ConfigureAwait(false), "action");
        }

        /// <summary>The same, and how it was chosen.</summary>
        public async Task<Decision> DecideAsync(string episodeId, object obs, object reward = null)
        {
            var fields = new Fields().Add("episode_id", episodeId).Add("obs", obs).Add("full", true);
            var answer = await Write("act", fields.AddIfGiven("reward", reward), episodeId).ConfigureAwait(false);
            return new Decision(Json.Get(answer, "action"), Json.Get(answer, "step"), Json.Get(answer, "logp"),
                Json.Get(answer, "weights_version"));
        }

        /// <summary>Actions for observations of several episodes, in one request; rewards by episode likewise.</summary>
        public async Task<Dictionary<string, object>> GetActionsAsync(IDictionary<string, object> observations,
            IDictionary<string, object> rewards = null)
        {
            if (observations.Count == 0) return new Dictionary<string, object>();
            string[] episodes = observations.Keys.ToArray();
            var acts = new List<object>();
            foreach (string id in episodes)
            {
                var act = new Dictionary<string, object> { ["episode_id"] = id, ["obs"] = observations[id] };
                if (rewards != null && rewards.TryGetValue(id, out object reward)) act["reward"] = reward;
                acts.Add(act);
            }
            var answer = await Write("act_many", new Fields().Add("acts", acts), episodes).ConfigureAwait(false);
            var actions = (List<object>)Json.Get(answer, "actions");
            return episodes.Zip(actions, (id, action) => new { id, action }).ToDictionary(x => x.id, x => x.action);
        }

        /// <summary>Says that the caller chose the action itself.</summary>
        public Task LogActionAsync(string episodeId, object obs, object action, object reward = null)
        {
            var fields = new Fields().Add("episode_id", episodeId).Add("obs", obs).Add("action", action);
            return Write("log_action", fields.AddIfGiven("reward", reward), episodeId);
        }

        /// <summary>Says what was earned since the last observation; rewards add up until the next one.</summary>
        /// <param name="dones">By agent: true where it has left.</param>
        /// <param name="step">Credits the decision of this number instead, as DecideAsync gave it.</param>
        public Task LogReturnsAsync(string episodeId, object reward, IDictionary<string, object> info = null,
            IDictionary<string, bool> dones = null, long? step = null)
        {
            var fields = new Fields().Add("episode_id", episodeId).Add("reward", reward).AddIfGiven("info", info);
            return Write("log_returns", fields.AddIfGiven("dones", dones).AddIfGiven("step", step), episodeId);
        }

        /// <summary>Ends an episode.</summary>
        /// <param name="obs">The last observation; null: the last known one.</param>
        /// <param name="truncated">It was cut off, and would have gone on.</param>
        public Task EndEpisodeAsync(string episodeId, object obs = null, bool truncated = false, object reward = null)
        {
            var fields = new Fields().Add("episode_id", episodeId).Add("obs", obs).Add("truncated", truncated);
            return Write("end", fields.AddIfGiven("reward", reward), episodeId);
        }

        /// <summary>Drops an open episode: what was not learned of it yet will not be.</summary>
        public Task DeleteEpisodeAsync(string episodeId)
        {
            string path = "/v1/episodes/" + Uri.EscapeDataString(episodeId);
            return InOrder(new[] { episodeId }, () => Numbered((seq, limit) => _http.Send("DELETE", path + string.Format(
                CultureInfo.InvariantCulture, "?client={0}&epoch={1}&seq={2}", _options.Client, _options.Epoch, seq), null, limit)));
        }

        /// <summary>What observations and actions must look like, and who acts.</summary>
        public Task<Dictionary<string, object>> SpacesAsync() { return Read("/v1/spaces"); }

        /// <summary>How the server is.</summary>
        public Task<Dictionary<string, object>> HealthAsync() { return Read("/v1/health"); }

        /// <summary>Closes the connection; calls under way fail. Episodes stay as they are: they belong to the server.</summary>
        public void Dispose()
        {
            _http.Dispose();
            (_link as SocketLink)?.Dispose();
        }

        private Task<Dictionary<string, object>> Read(string path)
        {
            return Task.Run(() => Persist(limit => _http.Send("GET", path, null, limit)));
        }

        private Task<Dictionary<string, object>> Write(string verb, Fields fields, params string[] episodes)
        {
            return InOrder(episodes, () => Numbered((seq, limit) => _link.Ask(verb, string.Format(CultureInfo.InvariantCulture,
                "\"client\":\"{0}\",\"epoch\":{1},\"seq\":{2}", _options.Client, _options.Epoch, seq) + fields, limit)));
        }

        private Task<Dictionary<string, object>> InOrder(string[] episodes, Func<Task<Dictionary<string, object>>> send)
        {
            lock (_lock)
            {
                Task[] earlier = episodes.Where(_latest.ContainsKey).Select(id => _latest[id]).ToArray();
                // On a thread of the pool: what encodes and connects shall not cost a frame of a game.
                var answer = Task.Run(async () =>
                {
                    await Settled(Task.WhenAll(earlier)).ConfigureAwait(false);
                    return await send().ConfigureAwait(false);
                });
                foreach (string id in episodes) _latest[id] = answer;
                answer.ContinueWith(_ => Forget(episodes, answer), TaskContinuationOptions.ExecuteSynchronously);
                return answer;
            }
        }

        private void Forget(string[] episodes, Task answer)
        {
            lock (_lock)
            {
                foreach (string id in episodes)
                    if (_latest.TryGetValue(id, out Task latest) && latest == answer) _latest.Remove(id);
            }
        }

        private async Task<Dictionary<string, object>> Numbered(Func<long, TimeSpan, Task<Dictionary<string, object>>> send)
        {
            var answered = new TaskCompletionSource<bool>(TaskCreationOptions.RunContinuationsAsynchronously);
            long seq = 0;
            while (seq == 0)
            {
                Task oldest = null;
                lock (_lock)
                {
                    if (_open.Count == 0 || _seq + 1 - _open.First().Key < Window) _open.Add(seq = ++_seq, answered.Task);
                    else oldest = _open.First().Value;
                }
                if (oldest != null) await oldest.ConfigureAwait(false);
            }
            try
            {
                return await Persist(limit => send(seq, limit)).ConfigureAwait(false);
            }
            finally
            {
                lock (_lock) _open.Remove(seq);
                answered.SetResult(true);
            }
        }

        private async Task<Dictionary<string, object>> Persist(Func<TimeSpan, Task<Dictionary<string, object>>> send)
        {
            DateTime end = DateTime.UtcNow + _options.Timeout;
            var attempt = TimeSpan.FromTicks(_options.Timeout.Ticks / Attempts);
            for (double pause = 0.1; ; pause = Math.Min(2 * pause, 2.0))
            {
                double wait;
                try
                {
                    TimeSpan left = end - DateTime.UtcNow;
                    return await send(left < attempt ? left : attempt).ConfigureAwait(false);
                }
                catch (PolicyClientException error)
                {
                    lock (_lock) wait = pause * (0.5 + _random.NextDouble()); // not all at once
                    wait = Math.Max(wait, error.RetryAfter ?? 0);
                    bool again = error.Code == PolicyClientException.Unreachable || Wait.Contains(error.Status);
                    if (!again || DateTime.UtcNow.AddSeconds(wait) >= end) throw;
                }
                await _http.Sleep(TimeSpan.FromSeconds(wait)).ConfigureAwait(false);
            }
        }

        private static async Task Settled(Task task)
        {
            try
            {
                await task.ConfigureAwait(false);
            }
            catch (Exception)
            {
                // whoever made that call is told
            }
        }
    }

    /// <summary>One episode of many agents in a game loop: observations are collected, asked about in one request, and
    /// polled for, so that no frame waits. Used from one thread.</summary>
    public sealed class Crowd
    {
        private readonly PolicyClient _client;
        private readonly Task<string> _episode;
        private readonly Dictionary<string, object> _observed = new Dictionary<string, object>();
        private readonly Dictionary<string, double> _earned = new Dictionary<string, double>();
        private readonly Dictionary<string, bool> _left = new Dictionary<string, bool>();
        private readonly Dictionary<string, object> _actions = new Dictionary<string, object>();
        private Task<object> _asked;

        public Crowd(PolicyClient client, string episodeId = null, bool trainingEnabled = true)
        {
            _client = client;
            _episode = client.StartEpisodeAsync(episodeId, trainingEnabled);
        }

        /// <summary>Whether a request is under way; what is observed meanwhile is asked about after it.</summary>
        public bool Busy { get { return _asked != null; } }

        /// <summary>What an agent sees now; the newest counts.</summary>
        public void Observe(string agent, object obs) { _observed[agent] = new Encoded(Json.Write(obs, agent)); }

        /// <summary>What an agent has earned; adds up until its next observation.</summary>
        public void Reward(string agent, double reward)
        {
            _earned.TryGetValue(agent, out double before);
            _earned[agent] = before + reward;
        }

        /// <summary>An agent has come to its end, while others go on.</summary>
        public void Leave(string agent)
        {
            _left[agent] = true;
            _observed.Remove(agent);
            _actions.Remove(agent);
        }

        /// <summary>To be called once a frame: sends what was observed when nothing is under way, and returns whether new
        /// actions have come.</summary>
        /// <exception cref="PolicyClientException">A request failed: its observations were not answered, and the rewards
        /// with them may not count. The episode is better given up, and another Crowd made.</exception>
        public bool Poll()
        {
            bool came = false;
            if (_asked != null)
            {
                if (!_asked.IsCompleted) return false;
                Task<object> asked = _asked;
                _asked = null;
                foreach (var pair in (IDictionary<string, object>)asked.GetAwaiter().GetResult())
                {
                    if (!_left.ContainsKey(pair.Key)) _actions[pair.Key] = pair.Value;
                }
                came = true;
            }
            if (_observed.Count + _left.Count > 0) _asked = Ask();
            return came;
        }

        /// <summary>The newest action of an agent, once.</summary>
        public bool TryTakeAction(string agent, out object action)
        {
            return _actions.TryGetValue(agent, out action) && _actions.Remove(agent);
        }

        /// <summary>Ends the episode for all agents, after what is under way. What was observed and not asked about is
        /// the last that their agents saw.</summary>
        public async Task EndAsync(bool truncated = false)
        {
            var last = Taken(_observed, _ => true);
            var earned = Taken(_earned, _ => true);
            string episode = await _episode.ConfigureAwait(false);
            if (_asked != null) await _asked.ConfigureAwait(false);
            object obs = last.Count > 0 ? last : null;
            await _client.EndEpisodeAsync(episode, obs, truncated, earned.Count > 0 ? earned : null).ConfigureAwait(false);
        }

        private Task<object> Ask()
        {
            var left = new Dictionary<string, bool>(_left);
            var lastEarned = Taken(_earned, left.ContainsKey);
            var observed = Taken(_observed, _ => true);
            var earned = Taken(_earned, observed.ContainsKey);
            _left.Clear();
            foreach (string agent in left.Keys.Where(agent => !lastEarned.ContainsKey(agent))) lastEarned[agent] = 0.0;
            return Task.Run(async () =>
            {
                string episode = await _episode.ConfigureAwait(false);
                if (left.Count > 0) await _client.LogReturnsAsync(episode, lastEarned, null, left).ConfigureAwait(false);
                if (observed.Count == 0) return new Dictionary<string, object>();
                object reward = earned.Count > 0 ? earned : null;
                return await _client.GetActionAsync(episode, observed, reward).ConfigureAwait(false);
            });
        }

        private static Dictionary<string, T> Taken<T>(Dictionary<string, T> from, Func<string, bool> which)
        {
            var taken = from.Where(pair => which(pair.Key)).ToDictionary(pair => pair.Key, pair => pair.Value);
            foreach (string key in taken.Keys) from.Remove(key);
            return taken;
        }
    }

    /// <summary>JSON, since Unity has none for values of any shape.</summary>
    public static class Json
    {
        private const int Deepest = 100;
        private const int Short = 32; // float arrays of this many values and more go as bytes
        private static readonly HashSet<Type> Whole = new HashSet<Type>
        {
            typeof(sbyte), typeof(byte), typeof(short), typeof(ushort), typeof(int), typeof(uint), typeof(long), typeof(ulong),
        };

        /// <exception cref="PolicyClientException">The value holds something that cannot be sent.</exception>
        public static string Write(object value, string path = "value")
        {
            var text = new StringBuilder();
            Write(text, value, path, 0);
            return text.ToString();
        }

        /// <exception cref="FormatException">The text is not JSON.</exception>
        public static object Read(string text)
        {
            var reader = new Reader(text);
            object value = reader.Value(0);
            reader.End();
            return value;
        }

        /// <summary>An array to be sent as bytes, which is shorter and faster than numbers: for images and the like.</summary>
        /// <param name="shape">In C order; by default one dimension.</param>
        public static object Array(float[] values, params int[] shape) { return Array(values, "float32", sizeof(float), shape); }

        public static object Array(byte[] values, params int[] shape) { return Array(values, "uint8", 1, shape); }

        public static int Int(object value) { return Convert.ToInt32(value, CultureInfo.InvariantCulture); }

        public static int[] Ints(object value) { return ((IEnumerable)value).Cast<object>().Select(Int).ToArray(); }

        public static float[] Floats(object value)
        {
            return ((IEnumerable)value).Cast<object>().Select(x => Convert.ToSingle(x, CultureInfo.InvariantCulture)).ToArray();
        }

        internal static object Get(Dictionary<string, object> answer, string name)
        {
            if (answer.TryGetValue(name, out object value)) return value;
            throw new PolicyClientException("the server's answer has no field " + name + ": is it a policy server?", "malformed", 200);
        }

        private static object Array(System.Array values, string dtype, int size, int[] shape)
        {
            if (shape.Length == 0) shape = new[] { values.Length };
            if (shape.Aggregate(1, (a, b) => a * b) != values.Length)
                throw Bad("array: " + values.Length + " values do not have the shape [" + string.Join(", ", shape) + "]");
            var bytes = new byte[values.Length * size];
            Buffer.BlockCopy(values, 0, bytes, 0, bytes.Length); // little-endian, as all that Unity and .NET run on is
            return new Encoded("{\"dtype\":\"" + dtype + "\",\"shape\":[" + string.Join(",", shape) + "],\"bytes\":\""
                + Convert.ToBase64String(bytes) + "\"}");
        }

        private static void Write(StringBuilder text, object value, string path, int depth)
        {
            if (depth > Deepest) throw Bad(path + ": nested more than " + Deepest + " deep");
            if (value == null) text.Append("null");
            else if (value is Encoded) text.Append(((Encoded)value).Text);
            else if (value is bool) text.Append((bool)value ? "true" : "false");
            else if (value is string) Quote(text, (string)value);
            else if (value is float) Number(text, (float)value, ((float)value).ToString("R", CultureInfo.InvariantCulture), path);
            else if (value is double) Number(text, (double)value, Shortest((double)value), path);
            else if (Whole.Contains(value.GetType())) text.Append(Convert.ToString(value, CultureInfo.InvariantCulture));
            else if (value is byte[]) Write(text, Array((byte[])value), path, depth);
            else if (value is float[] && ((float[])value).Length >= Short) Write(text, Finite((float[])value, path), path, depth);
            else if (value is System.Array && ((System.Array)value).Rank > 1) Nested(text, (System.Array)value, path);
            else if (value is IDictionary) Object(text, (IDictionary)value, path, depth);
            else if (value is IEnumerable) List(text, (IEnumerable)value, path, depth);
            else throw Bad(path + ": expected a number, bool, string, array, list or dictionary, got " + value.GetType());
        }

        private static object Finite(float[] numbers, string path)
        {
            int bad = System.Array.FindIndex(numbers, x => float.IsNaN(x) || float.IsInfinity(x));
            if (bad >= 0) throw Bad(path + "[" + bad + "]: expected a finite number, got " + numbers[bad]);
            return Array(numbers);
        }

        private static void Number(StringBuilder text, double number, string shortest, string path)
        {
            if (double.IsNaN(number) || double.IsInfinity(number)) throw Bad(path + ": expected a finite number, got " + number);
            text.Append(shortest);
        }

        // "R" alone is not exact for some numbers on older runtimes.
        private static string Shortest(double number)
        {
            string text = number.ToString("R", CultureInfo.InvariantCulture);
            bool exact = double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out double read) && read == number;
            return exact ? text : number.ToString("G17", CultureInfo.InvariantCulture);
        }

        private static void Nested(StringBuilder text, System.Array array, string path)
        {
            Nested(text, array, path, new int[array.Rank], 0);
        }

        private static void Nested(StringBuilder text, System.Array array, string path, int[] at, int dimension)
        {
            text.Append('[');
            for (at[dimension] = 0; at[dimension] < array.GetLength(dimension); at[dimension]++)
            {
                if (at[dimension] > 0) text.Append(',');
                if (dimension + 1 < array.Rank) Nested(text, array, path, at, dimension + 1);
                else Write(text, array.GetValue(at), path + "[" + string.Join(",", at) + "]", 0);
            }
            text.Append(']');
        }

        private static void Object(StringBuilder text, IDictionary items, string path, int depth)
        {
            text.Append('{');
            foreach (DictionaryEntry item in items)
            {
                if (!(item.Key is string key)) throw Bad(path + ": expected strings as keys, got " + item.Key.GetType());
                if (text[text.Length - 1] != '{') text.Append(',');
                Quote(text, key);
                text.Append(':');
                Write(text, item.Value, path + "." + key, depth + 1);
            }
            text.Append('}');
        }

        private static void List(StringBuilder text, IEnumerable items, string path, int depth)
        {
            text.Append('[');
            int i = 0;
            foreach (object item in items)
            {
                if (i > 0) text.Append(',');
                Write(text, item, path + "[" + i++ + "]", depth + 1);
            }
            text.Append(']');
        }

        private static void Quote(StringBuilder text, string characters)
        {
            text.Append('"');
            foreach (char c in characters)
            {
                if (c == '"' || c == '\\') text.Append('\\').Append(c);
                else if (c < ' ' || char.IsSurrogate(c)) text.Append("\\u").Append(((int)c).ToString("x4", CultureInfo.InvariantCulture));
                else text.Append(c);
            }
            text.Append('"');
        }

        private static PolicyClientException Bad(string message) { return new PolicyClientException(message, "value"); }

        private sealed class Reader
        {
            private readonly string _text;
            private int _at;

            public Reader(string text) { _text = text; }

            public object Value(int depth)
            {
                if (depth > Deepest) throw Wrong("nested more than " + Deepest + " deep");
                Skip();
                switch (Peek())
                {
                    case '{': return Object(depth);
                    case '[': return List(depth);
                    case '"': return String();
                    case 't': return Word("true", true);
                    case 'f': return Word("false", false);
                    case 'n': return Word("null", null);
                    default: return Number();
                }
            }

            public void End()
            {
                Skip();
                if (_at < _text.Length) throw Wrong("more text after the value");
            }

            private Dictionary<string, object> Object(int depth)
            {
                var items = new Dictionary<string, object>();
                _at++;
                if (Closes('}')) return items;
                do
                {
                    Skip();
                    string key = String();
                    Skip();
                    Expect(':');
                    items[key] = Value(depth + 1);
                }
                while (Comma());
                Expect('}');
                return items;
            }

            private List<object> List(int depth)
            {
                var items = new List<object>();
                _at++;
                if (Closes(']')) return items;
                do
                {
                    items.Add(Value(depth + 1));
                }
                while (Comma());
                Expect(']');
                return items;
            }

            private string String()
            {
                Expect('"');
                var characters = new StringBuilder();
                for (; Peek() != '"'; _at++)
                {
                    if (Peek() < ' ') throw Wrong("a control character in a string");
                    characters.Append(Peek() == '\\' ? Escaped() : Peek());
                }
                _at++;
                return characters.ToString();
            }

            private char Escaped()
            {
                _at++;
                int plain = "\"\\/bfnrt".IndexOf(Peek());
                if (plain >= 0) return "\"\\/\b\f\n\r\t"[plain];
                if (Peek() != 'u' || _at + 4 >= _text.Length) throw Wrong("an unknown escape");
                int code = 0;
                for (int i = 0; i < 4; i++)
                {
                    int digit = "0123456789abcdef".IndexOf(char.ToLowerInvariant(_text[++_at]));
                    if (digit < 0) throw Wrong("an unknown escape");
                    code = 16 * code + digit;
                }
                return (char)code;
            }

            private object Number()
            {
                int begin = _at;
                if (Peek() == '-') _at++;
                int first = _at;
                bool whole = true;
                Digits();
                if (_text[first] == '0' && _at > first + 1) throw Wrong("a number that begins with 0");
                if (Next() == '.')
                {
                    _at++;
                    Digits();
                    whole = false;
                }
                if (Next() == 'e' || Next() == 'E')
                {
                    _at++;
                    if (Next() == '+' || Next() == '-') _at++;
                    Digits();
                    whole = false;
                }
                string number = _text.Substring(begin, _at - begin);
                if (whole && long.TryParse(number, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out long exact)) return exact;
                if (!double.TryParse(number, NumberStyles.Float, CultureInfo.InvariantCulture, out double value) || double.IsInfinity(value))
                    throw Wrong("a number that is too large");
                return value;
            }

            private void Digits()
            {
                int begin = _at;
                while (Next() >= '0' && Next() <= '9') _at++;
                if (_at == begin) throw Wrong("expected a value");
            }

            private object Word(string word, object value)
            {
                if (string.CompareOrdinal(_text, _at, word, 0, word.Length) != 0) throw Wrong("expected a value");
                _at += word.Length;
                return value;
            }

            private bool Closes(char bracket)
            {
                Skip();
                if (Peek() != bracket) return false;
                _at++;
                return true;
            }

            private bool Comma()
            {
                Skip();
                if (Next() != ',') return false;
                _at++;
                return true;
            }

            private void Expect(char c)
            {
                if (Peek() != c) throw Wrong("expected " + c);
                _at++;
            }

            private void Skip()
            {
                while (Next() == ' ' || Next() == '\n' || Next() == '\r' || Next() == '\t') _at++;
            }

            private char Next() { return _at < _text.Length ? _text[_at] : '\0'; }

            private char Peek()
            {
                if (_at >= _text.Length) throw Wrong("it ends too early");
                return _text[_at];
            }

            private FormatException Wrong(string what)
            {
                return new FormatException("not JSON: " + what + " at character " + _at);
            }
        }
    }

    /// <summary>A value that is JSON already.</summary>
    internal sealed class Encoded
    {
        public Encoded(string text) { Text = text; }

        public string Text { get; }
    }

    /// <summary>The fields of a message after those that say who sends it.</summary>
    internal sealed class Fields
    {
        private readonly StringBuilder _text = new StringBuilder();

        public Fields Add(string name, object value)
        {
            _text.Append(",\"").Append(name).Append("\":").Append(Json.Write(value, name));
            return this;
        }

        public Fields AddIfGiven(string name, object value) { return value == null ? this : Add(name, value); }

        public override string ToString() { return _text.ToString(); }
    }

    /// <summary>One certificate alone. Names and authorities are not asked for, of which not all runtimes tell the truth:
    /// whoever has this certificate's key is the server.</summary>
    internal sealed class Trust
    {
        private readonly X509Certificate2 _only;

        public Trust(string path) { _only = new X509Certificate2(path); }

        public bool Accepts(object sender, X509Certificate certificate, X509Chain chain, SslPolicyErrors errors)
        {
            bool same = certificate != null && certificate.GetRawCertData().SequenceEqual(_only.RawData);
            return same && _only.NotBefore <= DateTime.Now && DateTime.Now <= _only.NotAfter;
        }
    }

    /// <summary>One request, once. A message is the inside of a JSON object.</summary>
    internal interface ILink
    {
        Task<Dictionary<string, object>> Ask(string verb, string message, TimeSpan limit);
    }

    internal sealed class HttpLink : ILink, IDisposable
    {
        private readonly string _base;
        private readonly string _token;
        private readonly HttpClient _http;
        private readonly CancellationTokenSource _closing = new CancellationTokenSource();

        public HttpLink(string address, string token, Trust trust)
        {
            _base = address;
            _token = token;
            var handler = new HttpClientHandler { AllowAutoRedirect = false, UseCookies = false };
            if (trust != null) handler.ServerCertificateCustomValidationCallback = trust.Accepts;
            _http = new HttpClient(handler) { Timeout = Timeout.InfiniteTimeSpan };
        }

        public Task<Dictionary<string, object>> Ask(string verb, string message, TimeSpan limit)
        {
            return Send("POST", "/v1/" + verb, "{" + message + "}", limit);
        }

        public async Task<Dictionary<string, object>> Send(string method, string path, string body, TimeSpan limit)
        {
            using (var cancel = Limited(limit))
            using (var request = new HttpRequestMessage(new HttpMethod(method), _base + path))
            {
                request.Headers.ExpectContinue = false;
                if (_token != null) request.Headers.Authorization = new AuthenticationHeaderValue("Bearer", _token);
                if (body != null)
                {
                    request.Content = new ByteArrayContent(Encoding.UTF8.GetBytes(body));
                    request.Content.Headers.ContentType = new MediaTypeHeaderValue("application/json");
                }
                try
                {
                    using (HttpResponseMessage response = await _http.SendAsync(request, cancel.Token).ConfigureAwait(false))
                    {
                        string text = await response.Content.ReadAsStringAsync().ConfigureAwait(false);
                        return Answered((int)response.StatusCode, text, Seconds(response.Headers, "Retry-After"));
                    }
                }
                catch (Exception error) when (!(error is PolicyClientException))
                {
                    throw Failed(error, cancel.IsCancellationRequested ? "no answer within " + limit.TotalSeconds + " s" : null);
                }
            }
        }

        public async Task Sleep(TimeSpan time)
        {
            try
            {
                await Task.Delay(time, _closing.Token).ConfigureAwait(false);
            }
            catch (OperationCanceledException error)
            {
                throw Failed(error);
            }
        }

        public CancellationTokenSource Limited(TimeSpan limit)
        {
            if (_closing.IsCancellationRequested) throw Failed(null);
            var cancel = CancellationTokenSource.CreateLinkedTokenSource(_closing.Token);
            cancel.CancelAfter(limit > TimeSpan.Zero ? limit : TimeSpan.FromMilliseconds(1));
            return cancel;
        }

        public PolicyClientException Failed(Exception error, string how = null)
        {
            if (_closing.IsCancellationRequested)
                return new PolicyClientException("the client was closed: make another one", PolicyClientException.Closed, cause: error);
            how = how ?? error.GetBaseException().Message;
            return new PolicyClientException(_base + " cannot be reached: " + how + "; is the server running, and the address right?",
                cause: error);
        }

        public static Dictionary<string, object> Accepted(int status, Dictionary<string, object> body, double? wait = null)
        {
            if (status == 200) return body;
            if (body.TryGetValue("retry_after", out object seconds)) wait = Convert.ToDouble(seconds, CultureInfo.InvariantCulture);
            string code = Text(body, "code") ?? "http_" + status;
            string message = (Text(body, "message") ?? "refused") + " (" + status + " " + code + ")";
            throw new PolicyClientException(message, code, status, Text(body, "request_id"), wait);
        }

        private static string Text(Dictionary<string, object> body, string name)
        {
            return body.TryGetValue(name, out object value) ? value as string : null;
        }

        public void Dispose()
        {
            _closing.Cancel();
            _http.Dispose();
        }

        private static double? Seconds(HttpResponseHeaders headers, string name)
        {
            if (!headers.TryGetValues(name, out IEnumerable<string> texts)) return null;
            bool number = double.TryParse(texts.First(), NumberStyles.Float, CultureInfo.InvariantCulture, out double seconds);
            return number ? seconds : (double?)null;
        }

        private static Dictionary<string, object> Answered(int status, string text, double? wait)
        {
            Dictionary<string, object> body = null;
            try
            {
                body = Json.Read(text) as Dictionary<string, object>;
            }
            catch (FormatException)
            {
                // a proxy's page, perhaps
            }
            string begin = text.Substring(0, Math.Min(text.Length, 200));
            if (body == null && status == 200) throw new PolicyClientException("not a policy server: " + begin, "malformed", status);
            return Accepted(status, body ?? new Dictionary<string, object> { ["message"] = begin }, wait);
        }
    }

    /// <summary>Requests over one WebSocket, which is opened when it is needed, also anew.</summary>
    internal sealed class SocketLink : ILink, IDisposable
    {
        private readonly HttpLink _http;
        private readonly Uri _address;
        private readonly string _token;
        private readonly Trust _trust;
        private readonly object _lock = new object();
        private Task<Connection> _connection;

        public SocketLink(HttpLink http, string address, string token, Trust trust)
        {
            _http = http;
            _address = new Uri(address + "/v1/socket");
            _token = token;
            _trust = trust;
        }

        public async Task<Dictionary<string, object>> Ask(string verb, string message, TimeSpan limit)
        {
            DateTime end = DateTime.UtcNow + limit;
            Task<Connection> opening;
            lock (_lock)
            {
                bool gone = _connection == null || _connection.IsFaulted || _connection.IsCanceled
                    || (_connection.Status == TaskStatus.RanToCompletion && _connection.Result.Dropped);
                if (gone) _connection = Open(limit);
                opening = _connection;
            }
            Connection connection = await opening.ConfigureAwait(false);
            return await connection.Ask(verb, message, end - DateTime.UtcNow).ConfigureAwait(false);
        }

        public void Dispose()
        {
            lock (_lock)
            {
                _connection?.ContinueWith(opened => opened.Result.Drop(null), TaskContinuationOptions.OnlyOnRanToCompletion);
            }
        }

        private async Task<Connection> Open(TimeSpan limit)
        {
            // Asked first: a WebSocket that was not opened does not tell the code and message of the refusal.
            await _http.Send("GET", "/v1/health", null, limit).ConfigureAwait(false);
            var socket = new ClientWebSocket();
            socket.Options.AddSubProtocol("steppe.v1");
            if (_trust != null) socket.Options.RemoteCertificateValidationCallback = _trust.Accepts;
            if (_token != null) socket.Options.SetRequestHeader("Authorization", "Bearer " + _token);
            try
            {
                using (var cancel = _http.Limited(limit)) await socket.ConnectAsync(_address, cancel.Token).ConfigureAwait(false);
            }
            catch (Exception error) when (!(error is PolicyClientException))
            {
                socket.Dispose();
                throw _http.Failed(error);
            }
            var connection = new Connection(_http, socket);
            connection.Listen();
            return connection;
        }
    }

    /// <summary>A WebSocket and what waits for an answer from it.</summary>
    internal sealed class Connection
    {
        private readonly HttpLink _http;
        private readonly ClientWebSocket _socket;
        private readonly SemaphoreSlim _sending = new SemaphoreSlim(1);
        private readonly Dictionary<long, TaskCompletionSource<Dictionary<string, object>>> _waiting =
            new Dictionary<long, TaskCompletionSource<Dictionary<string, object>>>();
        private long _id;

        public Connection(HttpLink http, ClientWebSocket socket)
        {
            _http = http;
            _socket = socket;
        }

        public bool Dropped { get; private set; }

        public async Task<Dictionary<string, object>> Ask(string verb, string message, TimeSpan limit)
        {
            var answer = new TaskCompletionSource<Dictionary<string, object>>(TaskCreationOptions.RunContinuationsAsynchronously);
            long id;
            lock (_waiting)
            {
                if (Dropped) throw _http.Failed(null, "the WebSocket was closed");
                _waiting[id = ++_id] = answer;
            }
            try
            {
                using (var cancel = _http.Limited(limit))
                {
                    await Send(string.Format(CultureInfo.InvariantCulture, "{{\"verb\":\"{0}\",\"id\":{1},", verb, id) + message + "}",
                        cancel.Token).ConfigureAwait(false);
                    Task first = await Task.WhenAny(answer.Task, Task.Delay(-1, cancel.Token)).ConfigureAwait(false);
                    if (first != answer.Task) throw new TimeoutException("no answer within " + limit.TotalSeconds + " s");
                    Dictionary<string, object> body = await answer.Task.ConfigureAwait(false);
                    return HttpLink.Accepted(Json.Int(Json.Get(body, "status")), body);
                }
            }
            catch (Exception error) when (!(error is PolicyClientException))
            {
                Drop(error); // a connection that says nothing may be dead: another one is opened for the next attempt
                throw _http.Failed(error);
            }
            finally
            {
                lock (_waiting) _waiting.Remove(id);
            }
        }

        public async void Listen()
        {
            try
            {
                var buffer = new ArraySegment<byte>(new byte[16384]);
                while (true)
                {
                    var message = new MemoryStream();
                    WebSocketReceiveResult part;
                    do
                    {
                        part = await _socket.ReceiveAsync(buffer, CancellationToken.None).ConfigureAwait(false);
                        if (part.MessageType == WebSocketMessageType.Close) throw new IOException("the WebSocket was closed");
                        message.Write(buffer.Array, 0, part.Count);
                    }
                    while (!part.EndOfMessage);
                    Hear(Encoding.UTF8.GetString(message.ToArray()));
                }
            }
            catch (Exception error)
            {
                Drop(error);
            }
        }

        public void Drop(Exception error)
        {
            lock (_waiting)
            {
                Dropped = true;
                foreach (var waiting in _waiting.Values) waiting.TrySetException(_http.Failed(error, error?.Message));
                _waiting.Clear();
            }
            _socket.Dispose();
        }

        private async Task Send(string message, CancellationToken cancel)
        {
            var bytes = new ArraySegment<byte>(Encoding.UTF8.GetBytes(message));
            await _sending.WaitAsync(cancel).ConfigureAwait(false);
            try
            {
                await _socket.SendAsync(bytes, WebSocketMessageType.Text, true, cancel).ConfigureAwait(false);
            }
            finally
            {
                _sending.Release();
            }
        }

        private void Hear(string text)
        {
            var body = Json.Read(text) as Dictionary<string, object>;
            if (body == null || !body.TryGetValue("id", out object id) || !(id is long)) return;
            lock (_waiting)
            {
                if (_waiting.TryGetValue((long)id, out var waiting)) waiting.TrySetResult(body);
            }
        }
    }
}
