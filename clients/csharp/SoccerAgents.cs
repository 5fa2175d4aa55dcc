// How a Unity game asks a policy server for its players' actions. Copy SteppeClient.cs and this file into Assets/, put
// SoccerAgents on an object of the scene, give each player a component that is a SoccerPlayer, and start a server:
//
//     steppe serve --spaces soccer.json --algo ppo --port 9900
//
// where soccer.json names the players and what they observe and do.

using System;
using System.Collections.Generic;
using Steppe;
using UnityEngine;

/// <summary>A player; its name in the scene is the agent's name.</summary>
public abstract class SoccerPlayer : MonoBehaviour
{
    /// <summary>What the player sees, as the observation space says: for a goalie with Box(738) a float[738]; for a
    /// striker with Tuple(Box(231), Box(63)) an object[] { float[231], float[63] }.</summary>
    public abstract object See();

    /// <summary>Moves as the action says; with MultiDiscrete [3, 3, 3] three numbers of 0, 1, 2. It holds until the next
    /// one comes.</summary>
    public abstract void Act(int[] action);
}

public sealed class SoccerAgents : MonoBehaviour
{
    public string address = "ws://127.0.0.1:9900";
    public List<SoccerPlayer> players = new List<SoccerPlayer>();
    public int decideEvery = 5; // physics steps
    public int longest = 3000; // physics steps of an episode
    public bool learn = true;

    private PolicyClient _client;
    private Crowd _crowd;
    private int _steps;

    private void Start()
    {
        // A token is a secret: it comes from outside, never from a file of the build.
        var options = new PolicyClientOptions { Token = Environment.GetEnvironmentVariable("STEPPE_TOKEN") };
        _client = new PolicyClient(address, options); // one for the whole game: all players share its connection
        Kickoff();
    }

    private void FixedUpdate()
    {
        try
        {
            _crowd.Poll(); // sends and receives; never waits
        }
        catch (PolicyClientException error)
        {
            // Tried again for 30 seconds already. The players go on as they were; a new episode asks again.
            Debug.LogWarning("no actions: " + error.Message);
            Kickoff();
            return;
        }
        foreach (SoccerPlayer player in players)
        {
            if (_crowd.TryTakeAction(player.name, out object action)) player.Act(Json.Ints(action));
        }
        _steps++;
        if (_steps >= longest) Whistle(true);
        // While an answer is under way nothing new is asked: the players act at the pace that the network allows.
        else if (_steps % decideEvery == 0 && !_crowd.Busy) Look();
    }

    /// <summary>To be called by the goal's trigger.</summary>
    public void Scored(ICollection<SoccerPlayer> winners)
    {
        foreach (SoccerPlayer player in players) _crowd.Reward(player.name, winners.Contains(player) ? 1 : -1);
        Whistle(false);
    }

    private void OnDestroy()
    {
        _client?.Dispose();
    }

    private void Kickoff()
    {
        _steps = 0;
        _crowd = new Crowd(_client, null, learn);
    }

    private void Look()
    {
        foreach (SoccerPlayer player in players) _crowd.Observe(player.name, player.See());
    }

    /// <summary>Ends the episode and begins the next one. Time that ran out is no end of the game's own.</summary>
    private async void Whistle(bool timeRanOut)
    {
        Look(); // the last that they see
        Crowd over = _crowd;
        Kickoff();
        try
        {
            await over.EndAsync(timeRanOut);
        }
        catch (PolicyClientException error)
        {
            Debug.LogWarning("the end of an episode was not told: " + error.Message);
        }
    }
}
