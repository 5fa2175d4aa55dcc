// Carries out calls that it reads, a line of JSON each, with the JavaScript client, and prints what came of them.
// A line with an address and options makes another client.
import { createInterface } from "node:readline";
import { result } from "./calls.mjs";

const { PolicyClient } = await import(process.argv[2]);

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
    main?.close().catch(() => {});
    first = command;
    main = new PolicyClient(first.address, first.options);
  } else {
    console.log(JSON.stringify(await answer(command)));
  }
}
main?.close().catch(() => {});
