// llama.cpp through node-llama-cpp's prebuilt binaries, on the GGUF as it is: the protocol of protocol.py.
//
// One context holds all sequences of a job; the library puts what they ask for at the same time into one batch.

import {createInterface} from "node:readline";
import {createRequire} from "node:module";
import {pathToFileURL} from "node:url";

const home = process.env.LORAMUX_PEER_HOME; // where npm installed it
const resolve = createRequire(`${home}/package.json`).resolve;
const {getLlama} = await import(pathToFileURL(resolve("node-llama-cpp")).href);
const {version} = createRequire(import.meta.url)(`${home}/node_modules/node-llama-cpp/package.json`);

const lines = createInterface({input: process.stdin})[Symbol.asyncIterator]();
const answer = (content) => process.stdout.write(JSON.stringify(content) + "\n");

const settings = JSON.parse((await lines.next()).value);
const llama = await getLlama({gpu: false, build: "never", maxThreads: settings.threads, logLevel: "error"});
const model = await llama.loadModel({modelPath: settings.gguf});
let context = null;
answer({ready: {"node-llama-cpp": version}});

/** Generate for one prompt; evaluating begins with an empty cache. */
async function generate(sequence, prompt, numTokens) {
    await sequence.clearHistory();
    const tokenIds = [];
    for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        tokenIds.push(token);
        if (tokenIds.length === numTokens) break;
    }
    return tokenIds;
}

/** Keep the context for the next job that fits it: making one is not what is timed. */
async function sequencesFor(prompts, numTokens) {
    const length = Math.ceil((Math.max(...prompts.map((prompt) => prompt.length)) + numTokens) / 256) * 256;
    if (context === null || context.sequences.length !== prompts.length || context.length < length) {
        await context?.context.dispose();
        const batchSize = prompts.reduce((sum, prompt) => sum + prompt.length, 0);
        const made = await model.createContext({
            sequences: prompts.length, contextSize: length, batchSize, threads: settings.threads,
        });
        context = {context: made, length, sequences: prompts.map(() => made.getSequence())};
    }
    return context.sequences;
}

for await (const line of lines) {
    const job = JSON.parse(line);
    try {
        const sequences = await sequencesFor(job.prompts, job.num_tokens);
        const began = performance.now();
        const tokenIds = await Promise.all(
            job.prompts.map((prompt, index) => generate(sequences[index], prompt, job.num_tokens)),
        );
        answer({seconds: (performance.now() - began) / 1000, token_ids: tokenIds, figures: {}});
    } catch (error) {
        answer({error: String(error)});
    }
}
process.exit(0);
