import { NpucError } from '../errors.ts';
import { rotaryTables } from '../import/huggingface/rope.ts';
import type { DType, TypedArray } from '../ir/dtype.ts';
import { type Encoding, integerRange, roundEven } from '../ir/encoding.ts';
import { elementCount, type TensorData, toFloats } from '../ir/tensor.ts';
import { rotateKeys } from './rotate-keys.ts';
import type { PortInfo, Runner } from './runner.ts';

/** The value added to scores where a token must not look: small enough for 16-bit formats (facts qnn-htp 2, "Mask"). */
export const MASK_VALUE = -50;

/** What a host must know to feed one decoder: filled from a contract at compile time and stored in the manifest. */
export interface DecoderProtocol {
  readonly contract: string;
  readonly layers: number;
  readonly headDim: number;
  readonly vocabSize: number;
  /** The whole context, in tokens: the cache of the largest graphs. */
  readonly cache: number;
  readonly rotary: 'in-graph' | 'half' | 'full' | 'stacked';
  /** Inverse rotary frequencies, headDim / 2 of them. */
  readonly frequencies: readonly number[];
  readonly names: {
    readonly tokens: string;
    readonly mask: string;
    readonly positions?: string;
    readonly cos?: string;
    readonly sin?: string;
    readonly rope?: string;
    readonly logits: string;
    readonly pastKey: readonly string[];
    readonly pastValue: readonly string[];
    readonly newKey: readonly string[];
    readonly newValue: readonly string[];
  };
  readonly keyTimeAxis: number;
  readonly valueTimeAxis: number;
  /**
   * Set where graphs take whole caches and give them back with the new rows in them: at the first new token's position, or
   * behind all others. Where they shift, graphs see their own tokens besides the cache, and the newest token is in its last slot.
   */
  readonly update?: 'in-graph' | 'shift';
  /** The mask's value where a token must not look; MASK_VALUE by default. */
  readonly masked?: number;
}

/** Looks up embedding rows for contracts that take embeddings: ids -> f32 [ids.length, hidden]. */
export type EmbeddingLookup = (ids: readonly number[]) => Float32Array;

/** One graph of a decoder: how many new tokens it takes, and the whole context that it sees. */
export interface SessionGraph {
  readonly tokens: number;
  readonly cache: number;
  readonly runner: Runner;
}

export interface DecoderSessionOptions {
  readonly protocol: DecoderProtocol;
  /** Every graph; a map holds graphs of the whole context by their number of new tokens. 1 is the decode graph. */
  readonly graphs: readonly SessionGraph[] | ReadonlyMap<number, Runner>;
  readonly embedding?: EmbeddingLookup;
  /** Makes the integers of rows as the runtime makes them, where that is not rounding the real numbers. */
  readonly integerRows?: (ids: readonly number[], port: Encoding) => TypedArray;
  /** Encodings of ports that are integers at the boundary. */
  readonly encodings?: ReadonlyMap<string, Encoding>;
}

/**
 * Runs a decoder the way its runtime would: prefill in chunks, then token by token, the cache kept by the host in the
 * contract's layout (valid past in slots 0..n-1, new tokens after the past slots). Integer ports are fed and read as
 * integers; the caches are never converted.
 *
 * Where there are graphs for several cache sizes the state lies in the smallest one that holds it and moves to a larger one
 * when the next chunk needs it. Chunks are cut as if there were the whole context only, so the results do not depend on it.
 */
export class DecoderSession {
  readonly protocol: DecoderProtocol;
  readonly #graphs: readonly SessionGraph[];
  /** New tokens of the graphs, from large to small. */
  readonly #sizes: readonly number[];
  readonly #embedding: EmbeddingLookup | undefined;
  readonly #integerRows: DecoderSessionOptions['integerRows'];
  readonly #encodings: ReadonlyMap<string, Encoding>;
  readonly #caches: Map<string, TensorData> = new Map();
  #length = 0;
  /** How far the positions of new tokens are ahead of their slots: global positions after the cache slid. */
  #ahead = 0;
  /** Slots of the caches now. */
  #cache = 0;
  #pinned: number | undefined;

  constructor(options: DecoderSessionOptions) {
    this.protocol = options.protocol;
    const { graphs, protocol } = options;
    this.#graphs =
      'get' in graphs
        ? Array.from(graphs, ([tokens, runner]) => ({ tokens, cache: protocol.cache, runner }))
        : [...graphs].sort((a, b) => a.cache - b.cache);
    this.#sizes = [...new Set(this.#graphs.map(({ tokens }) => tokens))].sort((a, b) => b - a);
    this.#embedding = options.embedding;
    this.#integerRows = options.integerRows;
    this.#encodings = options.encodings ?? new Map();
    this.reset();
  }

  /** The engine that runs the graphs. */
  get engine(): string {
    return this.#graphs[0]!.runner.engine;
  }

  /** Tokens in the cache. */
  get length(): number {
    return this.#length;
  }

  /** The cache sizes that there are graphs for, from small to large. */
  get cacheSizes(): readonly number[] {
    return [...new Set(this.#graphs.map(({ cache }) => cache))];
  }

  /** The cache size that the state lies in now. */
  get cache(): number {
    return this.#cache;
  }

  /** How many more tokens there is room for, in the largest cache or in the one that is pinned. */
  get room(): number {
    return (this.#pinned ?? this.protocol.cache) - this.#length;
  }

  /**
   * Empties the session and holds it to graphs of one cache size; without a size it may use all of them again.
   * @throws RT104 when no graph has that size
   */
  pinCache(cache?: number): void {
    if (cache !== undefined && !this.cacheSizes.includes(cache)) {
      throw new NpucError('RT104', {
        message: `there is no graph with a cache of ${cache}`,
        hint: `there are ${this.cacheSizes.join(', ')}`,
      });
    }
    this.#pinned = cache;
    this.reset();
  }

  /** Empties the cache: zeros, or the integer that stands for zero. */
  reset(): void {
    this.#length = 0;
    this.#ahead = 0;
    this.#cache = this.#pinned ?? this.#graphs[0]!.cache;
    const { names } = this.protocol;
    for (const name of [...names.pastKey, ...names.pastValue]) this.#caches.set(name, this.#emptyCache(name));
  }

  /**
   * Drops tokens behind the first `sinks` ones, and moves those after them up. Keys are kept rotated: with `cache` positions
   * those that move are rotated back to their new slots, so that no position exceeds the cache; with `global` positions they
   * stay, and new tokens go on counting.
   * @throws RT105 when there are not so many tokens, or a graph makes its own rotary tables and these end
   */
  slide(sinks: number, count: number, positions: 'cache' | 'global'): void {
    const left = this.#length - sinks - count;
    if (sinks < 0 || count < 1 || left < 0) {
      throw new NpucError('RT105', {
        message: `${count} tokens behind ${sinks} cannot be dropped: the cache holds ${this.#length}`,
      });
    }
    const { names, keyTimeAxis, valueTimeAxis } = this.protocol;
    for (const [list, axis, isKey] of [
      [names.pastKey, keyTimeAxis, true],
      [names.pastValue, valueTimeAxis, false],
    ] as const) {
      for (const name of list) {
        const cache = this.#caches.get(name)!;
        copySlots(cache, sinks + count, cache, sinks, left, axis);
        if (isKey && positions === 'cache') {
          const { frequencies } = this.protocol;
          rotateKeys(
            cache,
            { timeAxis: axis, frequencies, by: -count },
            [sinks, sinks + left],
            this.#encodings.get(name),
          );
        }
      }
    }
    this.#length -= count;
    if (positions === 'global') this.#ahead += count;
  }

  /** One cache of the present size. */
  #emptyCache(name: string): TensorData {
    const { pastKey } = this.protocol.names;
    const axis = pastKey.includes(name) ? this.protocol.keyTimeAxis : this.protocol.valueTimeAxis;
    const port = this.#port(name);
    const shape = port.shape.map((dim, i) => (i === axis ? this.#cache : dim));
    const data = zeros(port.dtype, elementCount(shape));
    const zero = this.#encodings.get(name)?.zeroPoint?.[0] ?? 0;
    if (zero !== 0) (data as Uint8Array).fill(zero);
    return { dtype: port.dtype, shape, data };
  }

  /** Moves the state into larger caches. */
  #moveTo(cache: number): void {
    this.#cache = cache;
    const { names, keyTimeAxis, valueTimeAxis } = this.protocol;
    for (const [list, axis] of [
      [names.pastKey, keyTimeAxis],
      [names.pastValue, valueTimeAxis],
    ] as const) {
      for (const name of list) {
        const larger = this.#emptyCache(name);
        copySlots(this.#caches.get(name)!, 0, larger, 0, this.#length, axis);
        this.#caches.set(name, larger);
      }
    }
  }

  /** A prefill graph without logits has no past of its last layer: any graph that has the input will do. */
  #port(name: string): PortInfo {
    for (const { runner } of this.#graphs) {
      const port = runner.inputs.find((input) => input.name === name);
      if (port) return port;
    }
    throw new NpucError('RT101', { message: `no graph has the input ${name}`, where: this.engine });
  }

  /** The graph for a chunk: with the smallest cache that holds the chunk behind the state, the present one at least. */
  #graphFor(size: number): SessionGraph | undefined {
    const needed = Math.max(this.#cache, this.#length + size);
    return this.#graphs.find(
      ({ tokens, cache }) =>
        tokens === size && cache >= needed && (this.#pinned === undefined || cache === this.#pinned),
    );
  }

  /**
   * Feeds tokens and grows the cache.
   * @param want `all` gives logits after every token, `last` after the last one only
   * @param chunks sizes to cut the tokens into, for tests; by default the smallest graph that takes all that is left, or
   *   else the largest one
   * @returns logits rows, f32 [vocab] each
   * @throws RT102 when the cache has no room for all of them: then nothing was run
   */
  async feed(
    ids: readonly number[],
    want: 'all' | 'last' = 'last',
    chunks?: readonly number[],
  ): Promise<Float32Array[]> {
    if (ids.length > this.room) {
      throw new NpucError('RT102', {
        message: `${ids.length} tokens do not fit: the cache of ${this.#length + this.room} has room for ${this.room}`,
        hint: 'compile with a larger --cache, or give a shorter prompt',
      });
    }
    const rows: Float32Array[] = [];
    const plan = [...(chunks ?? [])];
    for (let done = 0; done < ids.length; ) {
      const left = ids.length - done;
      const size = this.#pickGraph(Math.min(left, plan[0] ?? left), want);
      const count = Math.min(size, plan.shift() ?? left, this.#countFor(size, left, want));
      const last = done + count === ids.length;
      const logits = await this.#run(
        size,
        ids.slice(done, done + count),
        want === 'all' ? 'all' : last ? 'last' : 'none',
      );
      rows.push(...logits);
      done += count;
    }
    return rows;
  }

  #givesLogits(size: number): boolean {
    const { runner } = this.#graphs.find(({ tokens }) => tokens === size)!;
    return runner.outputs.some((output) => output.name === this.protocol.names.logits);
  }

  #countFor(size: number, left: number, want: 'all' | 'last'): number {
    // A prefill graph without logits must leave the last token to the decode graph.
    return want === 'last' && size > 1 && !this.#givesLogits(size) ? Math.min(size, left - 1) : Math.min(size, left);
  }

  #pickGraph(left: number, want: 'all' | 'last'): number {
    // Sizes fall: the last of several is the smallest.
    const usable = this.#sizes.filter(
      (size) => this.#graphFor(size) !== undefined && (want === 'last' || this.#givesLogits(size)),
    );
    const chunked = usable.filter((size) => size > 1 && this.#countFor(size, left, want) > 1);
    const single = usable.filter((size) => this.#givesLogits(size)).at(-1);
    const picked = chunked.filter((size) => size >= left).at(-1) ?? chunked[0] ?? single;
    if (picked !== undefined) return picked;
    throw new NpucError('RT102', {
      message: `no graph is small enough for the last ${this.room} slots of the cache`,
      hint: 'compile with a decode graph',
    });
  }

  async #run(size: number, ids: readonly number[], want: 'all' | 'last' | 'none'): Promise<Float32Array[]> {
    const { protocol } = this;
    const { names } = protocol;
    const { runner, cache } = this.#graphFor(size)!;
    if (cache > this.#cache) this.#moveTo(cache);
    // Graphs that shift see the whole cache and their own tokens besides.
    const past = protocol.update === 'shift' ? cache : cache - size;
    const feeds: Record<string, TensorData> = {};
    const give = (name: string, shape: readonly number[], data: Float32Array): void => {
      feeds[name] = this.#encode(name, shape, data);
    };
    const padded = Array.from({ length: size }, (_, i) => ids[i] ?? 0);
    const positions = padded.map((_, i) => this.#ahead + this.#length + i);
    const rowPort = this.#encodings.get(names.tokens);
    if (this.#integerRows && rowPort) {
      const data = this.#integerRows(padded, rowPort);
      feeds[names.tokens] = { dtype: rowPort.dtype, shape: [1, size, data.length / size], data };
    } else if (this.#embedding) {
      const rows = this.#embedding(padded);
      give(names.tokens, [1, size, rows.length / size], rows);
    } else {
      feeds[names.tokens] = { dtype: 'i32', shape: [1, size], data: Int32Array.from(padded) };
    }
    give(
      names.mask,
      [1, 1, size, protocol.update === 'in-graph' ? cache : past + size],
      this.#mask(size, past, ids.length),
    );
    if (protocol.rotary === 'in-graph') {
      if (this.#ahead + this.#length + ids.length > protocol.cache) {
        throw new NpucError('RT105', {
          message: `the graphs have rotary tables for ${protocol.cache} positions, global positions go beyond them`,
          hint: 'use cache positions, or graphs made for a longer context',
        });
      }
      // Padding rows may lie past the table; their result is never used.
      const held = positions.map((position) => Math.min(position, protocol.cache - 1));
      // A part of a decoder that is only its embedding, or only its head, has no positions.
      const port = runner.inputs.find(({ name }) => name === names.positions);
      if (port) feeds[names.positions!] = { dtype: 'i32', shape: port.shape, data: Int32Array.from(held) };
    } else {
      if (protocol.contract === 'genie' && this.#encodings.has(names.cos!)) {
        feeds[names.cos!] = this.#truncateTable(names.cos!, Math.cos, positions);
        feeds[names.sin!] = this.#truncateTable(names.sin!, Math.sin, positions);
      } else this.#giveRotary(give, size, positions);
    }
    for (const [list, axis] of [
      [names.pastKey, protocol.keyTimeAxis],
      [names.pastValue, protocol.valueTimeAxis],
    ] as const) {
      for (const name of list) {
        if (!runner.inputs.some((input) => input.name === name)) continue;
        const whole = this.#caches.get(name)!;
        feeds[name] =
          protocol.update === 'in-graph'
            ? whole
            : protocol.update === 'shift'
              ? this.#alignRight(name, axis)
              : firstSlots(whole, axis, past);
      }
    }
    const wanted = runner.outputs
      .map((output) => output.name)
      .filter((name) => want !== 'none' || name !== names.logits);
    const results = await runner.run(feeds, wanted);
    for (const [news, pasts, axis] of [
      [names.newKey, names.pastKey, protocol.keyTimeAxis],
      [names.newValue, names.pastValue, protocol.valueTimeAxis],
    ] as const) {
      news.forEach((name, layer) => {
        const [past, fresh] = [pasts[layer]!, results[name]!];
        if (protocol.update === 'in-graph') this.#caches.set(past, fresh);
        else if (protocol.update === 'shift') {
          // The newest real token lies before those that fill the graph up.
          const first = cache - size - this.#length;
          copySlots(fresh, first, this.#caches.get(past)!, 0, this.#length + ids.length, axis);
        } else copySlots(fresh, 0, this.#caches.get(past)!, this.#length, ids.length, axis);
      });
    }
    this.#length += ids.length;
    if (want === 'none') return [];
    const logits = this.#decode(names.logits, results[names.logits]!);
    const vocab = protocol.vocabSize;
    const first = want === 'all' ? 0 : ids.length - 1;
    return Array.from({ length: ids.length - first }, (_, i) =>
      logits.slice((first + i) * vocab, (first + i + 1) * vocab),
    );
  }

  /** A cache as graphs that shift want it: its tokens in the last slots. Here they are kept in the first ones. */
  #alignRight(name: string, axis: number): TensorData {
    const aligned = this.#emptyCache(name);
    copySlots(this.#caches.get(name)!, 0, aligned, this.#cache - this.#length, this.#length, axis);
    return aligned;
  }

  /** `count` rows are real tokens, the others fill the graph up. */
  #mask(size: number, past: number, count: number): Float32Array {
    const cache = size + past;
    const { update, masked = MASK_VALUE } = this.protocol;
    const mask = new Float32Array(size * cache).fill(masked);
    if (update === 'in-graph') {
      for (let row = 0; row < count; row++) mask.fill(0, row * cache, row * cache + this.#length + row + 1);
      return mask;
    }
    const first = update === 'shift' ? past - this.#length : 0;
    for (let row = 0; row < size; row++) {
      mask.fill(0, row * cache + first, row * cache + first + this.#length);
      mask.fill(0, row * cache + past, row * cache + past + row + 1);
    }
    return mask;
  }

  #giveRotary(
    give: (name: string, shape: readonly number[], data: Float32Array) => void,
    size: number,
    positions: readonly number[],
  ): void {
    const { names, headDim, rotary, frequencies } = this.protocol;
    const half = headDim / 2;
    const { cos, sin } = rotaryTables(Float64Array.from(frequencies), positions);
    if (rotary === 'stacked') {
      const table = new Float32Array(2 * size * headDim);
      [cos, sin].forEach((wave, which) => {
        for (let row = 0; row < size; row++) {
          const at = (which * size + row) * headDim;
          for (const start of [at, at + half]) table.set(wave.subarray(row * half, (row + 1) * half), start);
        }
      });
      give(names.rope!, [1, 2, size, headDim], table);
      return;
    }
    if (rotary === 'half') {
      give(names.cos!, [1, 1, size, half], cos);
      give(names.sin!, [1, 1, size, half], sin);
      return;
    }
    const fullCos = new Float32Array(size * headDim);
    const fullSin = new Float32Array(size * headDim);
    for (let row = 0; row < size; row++) {
      for (let i = 0; i < half; i++) {
        fullCos[row * headDim + i] = fullCos[row * headDim + half + i] = cos[row * half + i]!;
        // rot = concat(b, a): the first half of the sine carries the minus sign.
        fullSin[row * headDim + i] = -sin[row * half + i]!;
        fullSin[row * headDim + half + i] = sin[row * half + i]!;
      }
    }
    give(names.cos!, [1, size, 1, headDim], fullCos);
    give(names.sin!, [1, size, 1, headDim], fullSin);
  }

  /**
   * The integers that Genie makes of a rotary table, [1, 1, tokens, headDim / 2]: angles in f64, cut off, not rounded. Of
   * 2048 numbers in its tensor dumps 3 differ by one; rounding changes half of them, which tips close choices of tokens.
   */
  #truncateTable(name: string, wave: (angle: number) => number, positions: readonly number[]): TensorData {
    const { frequencies } = this.protocol;
    const { dtype, scale, zeroPoint } = this.#encodings.get(name)!;
    const [low, high] = integerRange(dtype);
    const data = zeros(dtype, positions.length * frequencies.length);
    positions.forEach((position, row) => {
      frequencies.forEach((frequency, i) => {
        const exact = wave(position * frequency) / scale[0]! + (zeroPoint?.[0] ?? 0);
        data[row * frequencies.length + i] = Math.min(high, Math.max(low, Math.trunc(exact)));
      });
    });
    return { dtype, shape: [1, 1, positions.length, frequencies.length], data };
  }

  #encode(name: string, shape: readonly number[], data: Float32Array): TensorData {
    const encoding = this.#encodings.get(name);
    if (!encoding) return { dtype: 'f32', shape, data };
    return { dtype: encoding.dtype, shape, data: quantizeValues(data, encoding) };
  }

  #decode(name: string, tensor: TensorData): Float32Array {
    const encoding = this.#encodings.get(name);
    if (!encoding || tensor.dtype === 'f32') return toFloats(tensor);
    const zero = encoding.zeroPoint?.[0] ?? 0;
    const scale = encoding.scale[0]!;
    return Float32Array.from(tensor.data as Uint16Array, (integer) => (integer - zero) * scale);
  }

  async close(): Promise<void> {
    for (const { runner } of this.#graphs) await runner.close();
  }
}

/** Per-tensor quantization of real numbers, ties to even, clipped to the type. */
export function quantizeValues(data: Float32Array, encoding: Encoding): TypedArray {
  const [low, high] = integerRange(encoding.dtype);
  const scale = encoding.scale[0]!;
  const zero = encoding.zeroPoint?.[0] ?? 0;
  const out = zeros(encoding.dtype, data.length) as Int16Array;
  for (let i = 0; i < data.length; i++) {
    out[i] = Math.min(high, Math.max(low, roundEven(Math.fround(data[i]! / scale)) + zero));
  }
  return out;
}

function zeros(dtype: DType, length: number): TypedArray {
  switch (dtype) {
    case 'u8':
      return new Uint8Array(length);
    case 'i8':
      return new Int8Array(length);
    case 'u16':
    case 'f16':
      return new Uint16Array(length);
    case 'i16':
      return new Int16Array(length);
    case 'i32':
      return new Int32Array(length);
    default:
      return new Float32Array(length);
  }
}

/** The first `count` slots of a cache along its time axis. */
function firstSlots(cache: TensorData, axis: number, count: number): TensorData {
  const shape = cache.shape.map((dim, i) => (i === axis ? count : dim));
  // With time outermost the slots lie together already.
  if (elementCount(shape.slice(0, axis)) === 1) {
    return { dtype: cache.dtype, shape, data: cache.data.subarray(0, elementCount(shape)) };
  }
  const out: TensorData = { dtype: cache.dtype, shape, data: zeros(cache.dtype, elementCount(shape)) };
  copySlots(cache, 0, out, 0, count, axis);
  return out;
}

/** Copies `count` slots along the time axis from one tensor into another of the same layout. */
function copySlots(
  from: TensorData,
  fromSlot: number,
  to: TensorData,
  toSlot: number,
  count: number,
  axis: number,
): void {
  const inner = elementCount(from.shape.slice(axis + 1));
  const outer = elementCount(from.shape.slice(0, axis));
  const [fromTime, toTime] = [from.shape[axis]!, to.shape[axis]!];
  const source = from.data as Float32Array;
  const target = to.data as Float32Array;
  for (let o = 0; o < outer; o++) {
    const start = (o * fromTime + fromSlot) * inner;
    target.set(source.subarray(start, start + count * inner), (o * toTime + toSlot) * inner);
  }
}
