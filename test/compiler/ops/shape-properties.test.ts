import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { bindDim } from '../../../compiler/ir/dims.ts';
import { type Attribute, type Dim, Graph, Module, tensorType } from '../../../compiler/ir/graph.ts';
import { Tensor, type TensorData } from '../../../compiler/ir/tensor.ts';
import { evaluateGraph } from '../../../compiler/ops/evaluate-graph.ts';
import { inferShapes } from '../../../compiler/ops/infer-shapes.ts';
import { isUnknownDim } from '../../../compiler/ops/shape-rules.ts';
import { int, ints, noise, text } from './node-case.ts';

/** One node over inputs whose dimensions have names, and over constants. */
interface SymbolicNode {
  readonly op: string;
  readonly opset?: number;
  /** Shapes of float inputs; every dimension above 1 gets a name. */
  readonly inputs: readonly (readonly number[])[];
  /** i64 constants behind them. */
  readonly constants?: readonly (readonly number[])[];
  readonly outputs?: number;
  readonly attributes?: Readonly<Record<string, Attribute>>;
}

/** Infers a node with symbolic inputs, then evaluates it with random data and compares the shapes. */
function check(entry: SymbolicNode): void {
  const module = new Module();
  const opset = entry.opset ?? 21;
  module.opsets.set('', opset);
  const graph = new Graph('case');
  module.graphs.push(graph);
  const bindings: Record<string, Dim> = {};
  const feeds: Record<string, TensorData> = {};
  const inputs = entry.inputs.map((shape, index) => {
    const named = shape.map((dim, axis): Dim => {
      if (dim === 1) return 1;
      bindings[`s${index}_${axis}`] = dim;
      return `s${index}_${axis}`;
    });
    feeds[`x${index}`] = noise(shape, index + 1);
    return graph.addInput(`x${index}`, tensorType('f32', named));
  });
  for (const values of entry.constants ?? [])
    inputs.push(graph.addConstant('c', Tensor.of('i64', [values.length], BigInt64Array.from(values, BigInt))));
  const outputs = Array.from({ length: entry.outputs ?? 1 }, () => graph.addValue('y'));
  graph.addNode({ op: entry.op, inputs, outputs, ...(entry.attributes && { attributes: entry.attributes }) });
  graph.outputs.push(...outputs);
  inferShapes(module);
  const results = evaluateGraph(graph, module.opsets, feeds);
  for (const output of outputs) {
    const type = output.type;
    if (type?.kind !== 'tensor' || !type.shape) throw new Error('no shape was inferred');
    const bound = type.shape.map((dim) => bindDim(dim, bindings));
    expect(bound.filter(isUnknownDim), `[${type.shape}]`).toEqual([]);
    expect(bound, `[${type.shape}]`).toEqual([...results[output.name]!.shape]);
  }
}

const dim = fc.integer({ min: 1, max: 7 });
const whole = (min: number, max: number): fc.Arbitrary<number> => fc.integer({ min, max });

interface WindowCase {
  readonly kernel: readonly number[];
  readonly strides: readonly number[];
  readonly dilations: readonly number[];
  readonly pads: readonly number[];
  readonly size: readonly number[];
  readonly autoPad: string;
  readonly attributes: Readonly<Record<string, Attribute>>;
}

/** Geometry of a window along two axes, large enough for the kernel. */
const windows: fc.Arbitrary<WindowCase> = fc
  .record({
    kernel: fc.tuple(whole(1, 3), whole(1, 3)),
    strides: fc.tuple(whole(1, 3), whole(1, 3)),
    dilations: fc.tuple(whole(1, 2), whole(1, 2)),
    pads: fc.tuple(whole(0, 2), whole(0, 2), whole(0, 2), whole(0, 2)),
    extra: fc.tuple(whole(0, 6), whole(0, 6)),
    autoPad: fc.constantFrom('NOTSET', 'SAME_UPPER', 'SAME_LOWER', 'VALID'),
  })
  .map((plan) => ({
    ...plan,
    size: plan.kernel.map((kernel, axis) => (kernel - 1) * plan.dilations[axis]! + 1 + plan.extra[axis]!),
    attributes: {
      strides: ints(...plan.strides),
      dilations: ints(...plan.dilations),
      ...(plan.autoPad === 'NOTSET' ? { pads: ints(...plan.pads) } : { auto_pad: text(plan.autoPad) }),
    },
  }));

/** Whether a transposed convolution has output left when its pads are cut away. */
function leavesSomething({ kernel, strides, dilations, pads, size, autoPad }: WindowCase): boolean {
  return size.every((length, axis) => {
    const full = (length - 1) * strides[axis]! + (kernel[axis]! - 1) * dilations[axis]! + 1;
    return autoPad !== 'NOTSET' || full > pads[axis]! + pads[axis + 2]!;
  });
}

const CASES: Readonly<Record<string, fc.Arbitrary<SymbolicNode>>> = {
  Conv: fc.tuple(windows, dim, whole(1, 2)).map(([{ kernel, size, attributes }, channels, group]) => ({
    op: 'Conv',
    inputs: [
      [2, channels * group, ...size],
      [2 * group, channels, ...kernel],
    ],
    attributes: { ...attributes, group: int(group), kernel_shape: ints(...kernel) },
  })),
  ConvTranspose: windows.filter(leavesSomething).map(({ kernel, size, attributes }) => ({
    op: 'ConvTranspose',
    inputs: [
      [2, 3, ...size],
      [3, 2, ...kernel],
    ],
    attributes: { ...attributes, kernel_shape: ints(...kernel) },
  })),
  'MaxPool and AveragePool': fc
    .tuple(windows, fc.constantFrom('MaxPool', 'AveragePool'), whole(0, 1))
    // A pad as wide as the kernel is not allowed.
    .filter(([{ kernel, pads, autoPad }]) => autoPad !== 'NOTSET' || pads.every((pad, at) => pad < kernel[at % 2]!))
    .map(([{ kernel, size, attributes }, op, ceil]) => ({
      op,
      inputs: [[1, 2, ...size]],
      attributes: { ...attributes, kernel_shape: ints(...kernel), ceil_mode: int(ceil) },
    })),
  Slice: fc.tuple(dim, dim, whole(-9, 9), whole(-9, 9), fc.constantFrom(1, 2, 3)).map(([a, b, start, end, step]) => ({
    op: 'Slice',
    inputs: [[a, b]],
    constants: [[start], [end], [1], [step]],
  })),
  Pad: fc.tuple(dim, dim, fc.tuple(whole(0, 3), whole(0, 3), whole(0, 3), whole(0, 3))).map(([a, b, pads]) => ({
    op: 'Pad',
    inputs: [[a, b]],
    constants: [pads],
  })),
  Reshape: fc.tuple(dim, dim, dim, fc.constantFrom([0, -1], [-1, 0], [0, 0, -1], [-1])).map(([a, b, c, target]) => ({
    op: 'Reshape',
    // A 0 in the target keeps the dimension at its own place.
    inputs: [target[0] === -1 && target.length === 2 ? [a * c, b] : [a, b, c]],
    constants: [target],
  })),
  'Squeeze and Unsqueeze': fc.tuple(dim, dim, whole(-3, 2)).map(([a, b, axis]) => ({
    op: 'Unsqueeze',
    inputs: [[a, b]],
    constants: [[axis]],
  })),
  Concat: fc.tuple(dim, fc.array(dim, { minLength: 2, maxLength: 4 }), whole(0, 1)).map(([shared, own, axis]) => ({
    op: 'Concat',
    inputs: own.map((size) => (axis === 0 ? [size, shared] : [shared, size])),
    attributes: { axis: int(axis) },
  })),
  'Split into given sizes': fc.tuple(dim, dim, dim).map(([a, b, c]) => ({
    op: 'Split',
    inputs: [[a + b, c]],
    constants: [[a, b]],
    outputs: 2,
  })),
  'Expand and Tile': fc.tuple(dim, dim, whole(1, 3), fc.constantFrom('Expand', 'Tile')).map(([a, b, times, op]) => ({
    op,
    inputs: [[a, 1]],
    constants: [op === 'Tile' ? [times, b] : [a, b]],
  })),
  Reduce: fc.tuple(dim, dim, dim, whole(-3, 2), whole(0, 1)).map(([a, b, c, axis, keep]) => ({
    op: 'ReduceMean',
    inputs: [[a, b, c]],
    constants: [[axis]],
    attributes: { keepdims: int(keep) },
  })),
  MatMul: fc
    .tuple(dim, dim, dim, fc.constantFrom([], [1], [3]), fc.constantFrom([], [1], [3]))
    .map(([m, k, n, left, right]) => ({
      op: 'MatMul',
      inputs: [
        [...left, m, k],
        [...right, k, n],
      ],
    })),
  Transpose: fc
    .tuple(dim, dim, dim, fc.shuffledSubarray([0, 1, 2], { minLength: 3 }))
    .map(([a, b, c, order]) => ({ op: 'Transpose', inputs: [[a, b, c]], attributes: { perm: ints(...order) } })),
  Broadcast: fc
    .tuple(
      fc.array(dim, { minLength: 1, maxLength: 4 }),
      fc.array(fc.boolean(), { minLength: 8, maxLength: 8 }),
      whole(0, 2),
    )
    .map(([shape, ones, drop]) => ({
      op: 'Add',
      inputs: [
        shape.map((size, axis) => (ones[axis] ? 1 : size)),
        shape.map((size, axis) => (ones[axis + 4] ? 1 : size)).slice(Math.min(drop, shape.length)),
      ],
    })),
  Flatten: fc.tuple(dim, dim, dim, whole(-3, 3)).map(([a, b, c, axis]) => ({
    op: 'Flatten',
    inputs: [[a, b, c]],
    attributes: { axis: int(axis) },
  })),
  Gather: fc.tuple(dim, dim, whole(-1, 1)).map(([a, b, axis]) => ({
    op: 'Gather',
    inputs: [[a, b]],
    constants: [[0, 0, -1]],
    attributes: { axis: int(axis) },
  })),
  TopK: fc
    .tuple(dim, whole(1, 3))
    .map(([a, k]) => ({ op: 'TopK', inputs: [[a, k + 1]], constants: [[k]], outputs: 2 })),
  DepthToSpace: fc.tuple(dim, dim, dim, whole(1, 3)).map(([c, h, w, size]) => ({
    op: 'DepthToSpace',
    inputs: [[1, c * size * size, h, w]],
    attributes: { blocksize: int(size) },
  })),
};

describe('inferred shapes bind to evaluated ones', () => {
  it.each(Object.entries(CASES))('%s', (_, cases) => {
    fc.assert(fc.property(cases, check), { numRuns: 60 });
  });
});
