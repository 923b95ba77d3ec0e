import { cloneModule } from '../compiler/ir/clone.ts';
import { type Graph, intAttribute, intsAttribute, type Module, tensorType, type Value } from '../compiler/ir/graph.ts';
import { Tensor, type TensorData, toFloats } from '../compiler/ir/tensor.ts';
import type { Runner, Tensors } from '../compiler/runtime/runner.ts';

/** What was seen of one value over the calibration text. */
export interface ValueStatistics {
  min: number;
  max: number;
  /** Median over rows (the last axis) of the row's root mean square: the size of a typical row, outliers aside. */
  typical: number;
  /** Per index of the last axis; only for values that were asked for. */
  channels?: ChannelStatistics;
  /** 2,048 equal bins over min..max; only for values that were asked for, in the second pass. */
  histogram?: Float64Array;
}

export interface ChannelStatistics {
  readonly min: Float32Array;
  readonly max: Float32Array;
  readonly meanSquare: Float64Array;
}

export type Statistics = ReadonlyMap<string, ValueStatistics>;

/** Ops whose output holds only elements of their data input: its range is known without looking. */
const MOVEMENT = new Set([
  'Reshape',
  'Transpose',
  'Split',
  'Slice',
  'Squeeze',
  'Unsqueeze',
  'Flatten',
  'Identity',
  'Expand',
]);

/** The largest size that a value had, of either sign. */
export function reachOf({ min, max }: Pick<ValueStatistics, 'min' | 'max'>): number {
  return Math.max(-min, max);
}

/** The value whose elements `value` consists of, following data movement back. */
export function movementRoot(value: Value): Value {
  let root = value;
  while (root.producer && MOVEMENT.has(root.producer.op) && root.producer.inputs[0]) root = root.producer.inputs[0];
  return root;
}

/** Values that calibration looks at: floating, computed or fed, not mere rearrangements of another. */
export function observedValues(graph: Graph): Value[] {
  const computed = graph.nodes.flatMap((node) => node.outputs.filter((value): value is Value => value !== undefined));
  return [...graph.inputs, ...computed].filter(
    (value) => value.type?.kind === 'tensor' && value.type.dtype === 'f32' && movementRoot(value) === value,
  );
}

const suffix = {
  min: '#min',
  max: '#max',
  rows: '#rows',
  channelMin: '#cmin',
  channelMax: '#cmax',
  channelSquares: '#csq',
};

/** Whether a name is that of a reduction; a model may have names with # of its own. */
function isTap(name: string): boolean {
  return Object.values(suffix).some((end) => name.endsWith(end));
}

/**
 * A copy of the module whose graph also gives reductions of the observed values: fetching whole activations through a
 * runtime's binding costs more than running the model (facts performance 4), so the graph itself reduces them.
 */
export function instrumentModule(module: Module, channelValues: ReadonlySet<string>): Module {
  const copy = cloneModule(module);
  const graph = copy.graph();
  // Reductions take their axes as an input from opset 18 on, ReduceSum alone from 13.
  const axesAreInputs = (module.opsets.get('') ?? 0) >= 18;
  const axesOf = (axes: readonly number[]): Value => {
    const name = `stat.axes_${axes.join('_')}`;
    return graph.find(name) ?? graph.addConstant(name, Tensor.of('i64', [axes.length], axes));
  };
  const reduce = (op: string, input: Value, name: string, axes?: readonly number[]): void => {
    const output = graph.emit(op, axes && axesAreInputs ? [input, axesOf(axes)] : [input], {
      name,
      type: tensorType('f32', axes ? undefined : []),
      attributes: { keepdims: intAttribute(0), ...(axes && !axesAreInputs ? { axes: intsAttribute(axes) } : {}) },
    });
    graph.outputs.push(output);
  };
  const observed = observedValues(graph);
  const moved = [...channelValues].map((name) => graph.find(name)!).filter((value) => !observed.includes(value));
  for (const value of [...observed, ...moved]) {
    reduce('ReduceMin', value, value.name + suffix.min);
    reduce('ReduceMax', value, value.name + suffix.max);
    const rank = value.shape.length;
    if (rank === 0) continue;
    reduce('ReduceSumSquare', value, value.name + suffix.rows, [rank - 1]);
    if (!channelValues.has(value.name)) continue;
    const leading = Array.from({ length: rank - 1 }, (_, i) => i);
    reduce('ReduceMin', value, value.name + suffix.channelMin, leading);
    reduce('ReduceMax', value, value.name + suffix.channelMax, leading);
    reduce('ReduceSumSquare', value, value.name + suffix.channelSquares, leading);
  }
  return copy;
}

/** Runs an instrumented graph and keeps what its reductions say; everything else passes through unchanged. */
export class ObservingRunner implements Runner {
  readonly engine: string;
  readonly inputs: Runner['inputs'];
  readonly outputs: Runner['outputs'];
  readonly #inner: Runner;
  readonly #taps: string[];
  readonly #seen: Map<string, Accumulator> = new Map();

  constructor(inner: Runner) {
    this.#inner = inner;
    this.engine = inner.engine;
    this.inputs = inner.inputs;
    this.outputs = inner.outputs.filter((output) => !isTap(output.name));
    this.#taps = inner.outputs.filter((output) => isTap(output.name)).map((output) => output.name);
  }

  async run(feeds: Tensors, outputs?: readonly string[]): Promise<Record<string, TensorData>> {
    const results = await this.#inner.run(feeds, [
      ...(outputs ?? this.outputs.map((output) => output.name)),
      ...this.#taps,
    ]);
    for (const tap of this.#taps) {
      const cut = tap.lastIndexOf('#');
      const name = tap.slice(0, cut);
      let accumulator = this.#seen.get(name);
      if (!accumulator) {
        accumulator = new Accumulator();
        this.#seen.set(name, accumulator);
      }
      accumulator.add(tap.slice(cut), toFloats(results[tap]!));
      delete results[tap];
    }
    return results;
  }

  /** Statistics of everything seen so far; `widths` gives the length of each value's last axis. */
  statistics(widths: ReadonlyMap<string, number>): Map<string, ValueStatistics> {
    return new Map([...this.#seen].map(([name, accumulator]) => [name, accumulator.finish(widths.get(name) ?? 1)]));
  }

  async close(): Promise<void> {
    await this.#inner.close();
  }
}

/** Rows of one value that are kept to find the typical one; of more, every second, every fourth and so on. */
const MOST_ROWS = 1 << 17;

class Accumulator {
  #min = Number.POSITIVE_INFINITY;
  #max = Number.NEGATIVE_INFINITY;
  #rowSquares: number[] = [];
  #rows = 0;
  #stride = 1;
  #channelMin: Float32Array | undefined;
  #channelMax: Float32Array | undefined;
  #channelSquares: Float64Array | undefined;

  add(kind: string, data: Float32Array): void {
    switch (kind) {
      case suffix.min:
        this.#min = Math.min(this.#min, data[0]!);
        break;
      case suffix.max:
        this.#max = Math.max(this.#max, data[0]!);
        break;
      case suffix.rows:
        this.#addRows(data);
        break;
      case suffix.channelMin:
        this.#channelMin ??= new Float32Array(data.length).fill(Number.POSITIVE_INFINITY);
        for (let i = 0; i < data.length; i++) this.#channelMin[i] = Math.min(this.#channelMin[i]!, data[i]!);
        break;
      case suffix.channelMax:
        this.#channelMax ??= new Float32Array(data.length).fill(Number.NEGATIVE_INFINITY);
        for (let i = 0; i < data.length; i++) this.#channelMax[i] = Math.max(this.#channelMax[i]!, data[i]!);
        break;
      case suffix.channelSquares:
        this.#channelSquares ??= new Float64Array(data.length);
        for (let i = 0; i < data.length; i++) this.#channelSquares[i] = this.#channelSquares[i]! + data[i]!;
        break;
    }
  }

  #addRows(squares: Float32Array): void {
    for (const square of squares) {
      // Runtimes may leave NaN out of a minimum, a sum never loses it.
      if (Number.isNaN(square)) this.#min = this.#max = Number.NaN;
      if (this.#rows++ % this.#stride === 0) this.#rowSquares.push(square);
    }
    if (this.#rowSquares.length <= MOST_ROWS) return;
    this.#rowSquares = this.#rowSquares.filter((_, index) => index % 2 === 0);
    this.#stride *= 2;
  }

  finish(width: number): ValueStatistics {
    const squares = Float32Array.from(this.#rowSquares).sort();
    const typical = squares.length === 0 ? 0 : Math.sqrt(squares[squares.length >> 1]! / width);
    const statistics: ValueStatistics = { min: this.#min, max: this.#max, typical };
    if (this.#channelMin && this.#channelMax && this.#channelSquares) {
      const rows = Math.max(1, this.#rows);
      statistics.channels = {
        min: this.#channelMin,
        max: this.#channelMax,
        meanSquare: this.#channelSquares.map((sum) => sum / rows),
      };
    }
    return statistics;
  }
}

/** The value before the conversions of number format that a plan put behind it. */
export function conversionSource(value: Value): Value {
  let source = value;
  while (source.producer?.op === 'Identity') source = source.producer.input(0);
  return source;
}

/** The length of the last axis of every real value. */
export function lastAxisWidths(graph: Graph): Map<string, number> {
  const real = [...graph.values].filter((value) => value.type?.kind === 'tensor' && value.type.dtype === 'f32');
  return new Map(real.map((value) => [value.name, value.shape.length === 0 ? 1 : Number(value.shape.at(-1))]));
}
