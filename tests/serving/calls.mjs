// The calls of the conformance script with the JavaScript client, in Node and in browsers.

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
  closed_meanwhile: (client) => {
    setTimeout(() => client.close(), 50);
    return client.startEpisode();
  },
  close: (client) => client.close(),
  discarded: async (client) => client.discarded,
  health: (client) => client.health(),
  spaces: (client) => client.spaces(),
};

/** What a call gives, or the error that it raises. */
export async function result(client, { call, with: args }) {
  try {
    const gives = await CALLS[call](client, args ?? {});
    return { gives: gives === undefined ? null : gives };
  } catch (error) {
    const { name, status, code, message, requestId, retryAfter } = error;
    return { raises: { name, status, code, message, request_id: requestId, retry_after: retryAfter } };
  }
}
