import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import type { Module } from '../compiler/ir/graph.ts';
import type { TensorData } from '../compiler/ir/tensor.ts';
import { type DecoderProtocol, DecoderSession } from '../compiler/runtime/decoder-session.ts';
import type { Runner, Tensors } from '../compiler/runtime/runner.ts';
import { plainContract } from '../passes/io-contract.ts';
import { makeProtocol } from '../passes/protocol.ts';
import { decoderStages, splitDecoder } from '../passes/split-decoder.ts';

export interface StreamOptions {
  /** Tokens of a chunk and of the context that the module was made for. */
  readonly tokens: number;
  readonly window: number;
  readonly windows: readonly (readonly number[])[];
  /** Bytes of float weights that are open at a time. */
  readonly weightBytes?: number;
  readonly onProgress?: (done: number, total: number) => void;
}

/** SmolLM2-135M has 0.65 GB, a model of 1 billion weights 6 GB: an engine holds them about twice. */
const WEIGHT_BYTES = 1 << 30;

/**
 * Feeds windows of token ids to the float decoder in the plain contract, chunk by chunk, each window from an empty cache.
 * A decoder of more weight bytes than may be open is cut: every window runs through one part before the next part is
 * opened, and the residual stream of all windows waits in between. The parts compute what the whole computes.
 * @param open opens a part, or the whole, for running; closed here
 */
export async function streamDecoder(
  config: DecoderConfig,
  module: Module,
  open: (part: Module) => Promise<Runner>,
  options: StreamOptions,
): Promise<void> {
  const parts = splitDecoder(module, chooseCuts(module, options.weightBytes ?? WEIGHT_BYTES));
  const protocol = makeProtocol(config, plainContract, options.window);
  const total = parts.length * options.windows.length;
  let waiting: TensorData[] = [];
  for (const [index, part] of parts.entries()) {
    const stream = new StreamRunner(await open(part), protocol, waiting, index < parts.length - 1 ? part : undefined);
    const session = new DecoderSession({
      protocol: restrictProtocol(protocol, part),
      graphs: new Map([[options.tokens, stream]]),
    });
    try {
      for (const [done, window] of options.windows.entries()) {
        session.reset();
        await session.feed(window, 'last');
        options.onProgress?.(index * options.windows.length + done + 1, total);
      }
    } finally {
      await session.close();
    }
    waiting = stream.left;
  }
}

/** Cuts that keep every part within the bytes, or at one stage; none when the whole is. */
function chooseCuts(module: Module, limit: number): string[] {
  const cuts: string[] = [];
  let bytes = 0;
  let end: string | undefined;
  for (const stage of decoderStages(module.graph())) {
    const size = stage.constants.reduce((sum, { data }) => sum + data!.byteLength, 0);
    if (end !== undefined && bytes + size > limit) {
      cuts.push(end);
      bytes = 0;
    }
    bytes += size;
    end = stage.end;
  }
  return cuts;
}

/** The protocol of one part: the caches that it keeps, and logits of one number where it has none. */
function restrictProtocol(protocol: DecoderProtocol, part: Module): DecoderProtocol {
  const graph = part.graph();
  const { names } = protocol;
  const kept = names.pastKey.flatMap((name, layer) => (graph.find(name) ? [layer] : []));
  const pick = (list: readonly string[]): string[] => kept.map((layer) => list[layer]!);
  return {
    ...protocol,
    vocabSize: graph.find(names.logits) ? protocol.vocabSize : 1,
    names: {
      ...names,
      pastKey: pick(names.pastKey),
      pastValue: pick(names.pastValue),
      newKey: pick(names.newKey),
      newValue: pick(names.newValue),
    },
  };
}

/** A part as the session sees a decoder: the residual stream comes from the part before and is kept for the next one. */
class StreamRunner implements Runner {
  readonly engine: string;
  readonly inputs: Runner['inputs'];
  readonly outputs: Runner['outputs'];
  /** What left this part, in the order of the chunks. */
  readonly left: TensorData[] = [];
  readonly #inner: Runner;
  readonly #entering: TensorData[];
  readonly #entry: string | undefined;
  readonly #exit: string | undefined;
  readonly #logits: string;

  /** @param part the module, where another part follows: its first output is the stream */
  constructor(inner: Runner, protocol: DecoderProtocol, entering: TensorData[], part: Module | undefined) {
    this.#inner = inner;
    this.engine = inner.engine;
    this.#entering = entering;
    this.#logits = protocol.names.logits;
    const { tokens, mask, positions, pastKey, pastValue } = protocol.names;
    const known = new Set([tokens, mask, positions, ...pastKey, ...pastValue]);
    this.inputs = inner.inputs.filter(({ name }) => known.has(name));
    this.#entry = inner.inputs.find(({ name }) => !known.has(name))?.name;
    this.#exit = part?.graph().outputs[0]?.name;
    const logits = { name: this.#logits, dtype: 'f32', shape: [1, -1, 1] } as const;
    this.outputs = [...inner.outputs.filter(({ name }) => name !== this.#exit), ...(part ? [logits] : [])];
  }

  async run(feeds: Tensors, outputs: readonly string[]): Promise<Record<string, TensorData>> {
    const given = this.inputs.map(({ name }): [string, TensorData] => [name, feeds[name]!]);
    if (this.#entry !== undefined) given.push([this.#entry, this.#entering.shift()!]);
    const wanted = outputs.filter((name) => name !== this.#logits || this.#exit === undefined);
    const exit = this.#exit === undefined ? [] : [this.#exit];
    const results = await this.#inner.run(Object.fromEntries(given), [...wanted, ...exit]);
    if (this.#exit !== undefined) {
      const stream = results[this.#exit]!;
      this.left.push(stream);
      const rows = stream.shape[1]!;
      results[this.#logits] = { dtype: 'f32', shape: [1, rows, 1], data: new Float32Array(rows) };
    }
    return results;
  }

  async close(): Promise<void> {
    await this.#inner.close();
  }
}
