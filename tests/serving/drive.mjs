// Carries out calls that it reads, a line of JSON each, with the JavaScript client, and prints what came of them.
// A line with an address and options makes another client.
import { createInterface } from "node:readline";

const { PolicyClient } = await import(process.argv[2]);

const CALLS = {
  start_episode: (client, { episode_id, training_enabled }) =>
    client.startEpisode(episode_id ?? null, { trainingEnabled: training_enabled ?? true }),
  get_action: (client, { episode_id, obs, full, reward }) => client.getAction(episode_id, obs, { full, reward }),
  get_actions: (client, { obs, rewards }) => client.getActions(obs, { rewards }),
  log_action: (client, { episode_id, obs, action, reward }) => client.logAction(episode_id, obs, action, { reward }),
  log_returns: (client, { episode_id, reward, info, dones, step }) =>
    client.logReturns(episode_id, reward, { info, dones, step }),
  end_episode: (client, { episode_id, obs, truncated, reward }) =>
    client.endEpisode(episode_id, obs, { truncated, reward }),
  delete_episode: (client, { episode_id }) => client.deleteEpisode(episode_id),
  not_a_number: (client) => client.getAction("e", { a: [0, Number.NaN] }),
  health: (client) => client.health(),
  spaces: (client) => client.spaces(),
};

async function result(client, { call, with: args }) {
  try {
    const gives = await CALLS[call](client, args ?? {});
    return { gives: gives === undefined ? null : gives };
  } catch (error) {
    const { name, status, code, message, requestId, retryAfter } = error;
    return { raises: { name, status, code, message, request_id: requestId, retry_after: retryAfter } };
  }
}

async function answer(command) {
  if (command.together) return Promise.all(command.together.map((each) => result(main, each)));
  if (!command.client) return result(main, command);
  const other = new PolicyClient(first.address, { ...first.options, ...command.client });
  return result(other, command).finally(() => other.close());
}

let main, first;
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  if (command.address) {
    main?.close();
    first = command;
    main = new PolicyClient(first.address, first.options);
  } else {
    console.log(JSON.stringify(await answer(command)));
  }
}
main.close();
