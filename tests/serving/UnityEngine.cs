// As much of Unity as the sample uses, and a game that plays it.
using System;
using System.Collections.Generic;
using System.Reflection;
using System.Threading;

namespace UnityEngine
{
    public class MonoBehaviour
    {
        public string name;
    }

    public static class Debug
    {
        public static void LogWarning(string message) { Console.WriteLine("warning: " + message); }
    }
}

internal sealed class Player : SoccerPlayer
{
    public object seen;
    public string did = "";

    public override object See() { return seen; }

    public override void Act(int[] action) { did += string.Join("", action) + " "; }
}

internal static class Game
{
    private static void Main(string[] args)
    {
        var goalie = new Player { name = "goalie", seen = new float[738] };
        var striker = new Player { name = "striker", seen = new object[] { new float[231], new float[63] } };
        var game = new SoccerAgents { address = args[0], decideEvery = 1, longest = 1000000 };
        game.players.Add(goalie);
        game.players.Add(striker);
        Frame(game, "Start");
        double longest = 0;
        bool scored = false;
        for (int frame = 0; frame < 5000 && striker.did.Length < 24; frame++)
        {
            var watch = System.Diagnostics.Stopwatch.StartNew();
            Frame(game, "FixedUpdate");
            if (frame > 5) longest = Math.Max(longest, watch.Elapsed.TotalMilliseconds); // compiled by then
            if (!scored && striker.did.Length == 12) game.Scored(new List<SoccerPlayer> { striker });
            scored = striker.did.Length >= 12;
            Thread.Sleep(1);
        }
        Thread.Sleep(100);
        Frame(game, "OnDestroy");
        Console.WriteLine(goalie.did);
        Console.WriteLine(striker.did);
        Console.WriteLine(longest.ToString(System.Globalization.CultureInfo.InvariantCulture));
    }

    private static void Frame(SoccerAgents game, string method)
    {
        typeof(SoccerAgents).GetMethod(method, BindingFlags.NonPublic | BindingFlags.Instance).Invoke(game, null);
    }
}
