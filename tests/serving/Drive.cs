// Carries out calls that it reads, a line of JSON each, with the C# client, and prints what came of them. A line with an
// address and options makes another client. `Drive json` instead reads JSON texts and prints them as it would write them.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.Linq;
using System.Text;
using System.Threading.Tasks;
using Steppe;
using Item = System.Collections.Generic.Dictionary<string, object>;

internal static class Drive
{
    private static void Main(string[] args)
    {
        Console.InputEncoding = Console.OutputEncoding = new UTF8Encoding(false);
        CultureInfo.DefaultThreadCurrentCulture = CultureInfo.CurrentCulture = new CultureInfo("de-DE"); // 0,5
        if (args.Length > 0) Texts();
        else Calls().GetAwaiter().GetResult();
    }

    private static void Texts()
    {
        for (string line; (line = Console.ReadLine()) != null;)
        {
            try
            {
                Console.WriteLine(Json.Write(Json.Read(line)));
            }
            catch (FormatException error)
            {
                Console.WriteLine(error.Message);
            }
        }
    }

    private static async Task Calls()
    {
        Item first = null;
        PolicyClient client = null;
        for (string line; (line = Console.ReadLine()) != null;)
        {
            var command = (Item)Json.Read(line);
            object answer;
            if (command.ContainsKey("address"))
            {
                client?.Dispose();
                client = Client(first = command, new Item());
                continue;
            }
            if (command.ContainsKey("together"))
            {
                var each = ((List<object>)command["together"]).Select(one => Result(client, (Item)one)).ToArray();
                answer = await Task.WhenAll(each);
            }
            else if (command.ContainsKey("client"))
            {
                using (PolicyClient other = Client(first, (Item)command["client"])) answer = await Result(other, command);
            }
            else
            {
                answer = await Result(client, command);
            }
            Console.WriteLine(Json.Write(answer));
        }
        client?.Dispose();
    }

    private static PolicyClient Client(Item first, Item changes)
    {
        var fields = new Item((Item)first["options"]);
        foreach (var change in changes) fields[change.Key] = change.Value;
        var options = new PolicyClientOptions();
        if (fields.ContainsKey("token")) options.Token = (string)fields["token"];
        if (fields.ContainsKey("client")) options.Client = (string)fields["client"];
        if (fields.ContainsKey("epoch")) options.Epoch = (long)fields["epoch"];
        if (fields.ContainsKey("certificate")) options.Certificate = (string)fields["certificate"];
        if (fields.ContainsKey("timeout")) options.Timeout = TimeSpan.FromSeconds(Convert.ToDouble(fields["timeout"]));
        return new PolicyClient((string)first["address"], options);
    }

    private static async Task<Item> Result(PolicyClient client, Item command)
    {
        var args = command.ContainsKey("with") ? (Item)command["with"] : new Item();
        Func<string, object> get = name => args.TryGetValue(name, out object value) ? value : null;
        try
        {
            return new Item { ["gives"] = await Call(client, (string)command["call"], (string)get("episode_id"), get) };
        }
        catch (PolicyClientException error)
        {
            return new Item
            {
                ["raises"] = new Item
                {
                    ["name"] = error.GetType().Name, ["status"] = error.Status, ["code"] = error.Code, ["message"] = error.Message,
                    ["request_id"] = error.RequestId, ["retry_after"] = error.RetryAfter,
                },
            };
        }
    }

    private static async Task<object> Call(PolicyClient client, string call, string episode, Func<string, object> get)
    {
        switch (call)
        {
            case "start_episode": return await client.StartEpisodeAsync(episode, (bool?)get("training_enabled") ?? true);
            case "get_action":
                if (get("full") is bool) return Told(await client.DecideAsync(episode, get("obs"), get("reward")));
                return await client.GetActionAsync(episode, get("obs"), get("reward"));
            case "get_actions": return await client.GetActionsAsync((Item)get("obs"), (Item)get("rewards"));
            case "health": return await client.HealthAsync();
            case "spaces": return await client.SpacesAsync();
            case "log_action": await client.LogActionAsync(episode, get("obs"), get("action"), get("reward")); break;
            case "log_returns":
                var dones = ((Item)get("dones"))?.ToDictionary(done => done.Key, done => (bool)done.Value);
                await client.LogReturnsAsync(episode, get("reward"), (Item)get("info"), dones, (long?)get("step"));
                break;
            case "end_episode":
                await client.EndEpisodeAsync(episode, get("obs"), (bool?)get("truncated") ?? false, get("reward"));
                break;
            case "delete_episode": await client.DeleteEpisodeAsync(episode); break;
            case "not_a_number": return await client.GetActionAsync("e", new Item { ["a"] = new[] { 0.0, double.NaN } });
            case "closed_meanwhile":
                Task<string> started = client.StartEpisodeAsync();
                await Task.Delay(50);
                client.Dispose();
                return await started;
            case "crowd": return await InACrowd(client, (List<object>)get("frames"));
            default: throw new ArgumentException(call);
        }
        return null;
    }

    private static Item Told(Decision decision)
    {
        return new Item
        {
            ["action"] = decision.Action, ["step"] = decision.Step, ["logp"] = decision.Logp, ["weightsVersion"] = decision.WeightsVersion,
        };
    }

    // Each frame has what agents observe and earn, and who leaves; a frame is over when what it asked has been answered.
    private static async Task<object> InACrowd(PolicyClient client, List<object> frames)
    {
        var crowd = new Crowd(client);
        var taken = new List<object>();
        foreach (Item frame in frames)
        {
            foreach (var earned in (Item)frame["earned"]) crowd.Reward(earned.Key, Convert.ToDouble(earned.Value));
            foreach (var seen in (Item)frame["seen"]) crowd.Observe(seen.Key, seen.Value);
            foreach (string agent in (List<object>)frame["left"]) crowd.Leave(agent);
            crowd.Poll();
            while (crowd.Busy && !crowd.Poll()) await Task.Delay(1);
            var actions = new Item();
            foreach (string agent in ((Item)frame["seen"]).Keys)
                if (crowd.TryTakeAction(agent, out object action)) actions[agent] = action;
            taken.Add(actions);
        }
        await crowd.EndAsync();
        return taken;
    }
}
