import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { NpucError } from '../../../compiler/errors.ts';
import { bindDim } from '../../../compiler/ir/dims.ts';
import { type Dim, tensorType, type Value, type ValueType } from '../../../compiler/ir/graph.ts';
import type { TensorData } from '../../../compiler/ir/tensor.ts';
import { evaluateValues } from '../../../compiler/ops/evaluate-graph.ts';
import { inferShapes } from '../../../compiler/ops/infer-shapes.ts';
import { isTensorData } from '../../../compiler/ops/runtime-value.ts';
import { isUnknownDim } from '../../../compiler/ops/shape-rules.ts';
import { hasBackendSuite } from '../../backend-suite.ts';
import { hasMaterial, materialPath } from '../../material.ts';
import { runOnnx } from '../run-onnx.ts';
import { type CaseData, openCase, readCaseData, readCaseModel } from './backend-case.ts';
import { difference } from './compare.ts';

/** case -> `pass`, `unsupported: <reason>`, or `distrusted: <why>` where ONNX Runtime gives what we give. */
const TABLE = parse(readFileSync(new URL('../../../fixtures/onnx-backend.yaml', import.meta.url), 'utf8')) as Record<
  string,
  string
>;

/** Evaluates a case and says how it ends. Inferred types are compared with every value that is computed on the way. */
async function stateOf(name: string): Promise<string> {
  const module = openCase(name);
  const graph = module.graph();
  const declared = graph.outputs.map((output) => output.type);
  const sets = readCaseData(name, graph, declared);
  inferShapes(module);
  const shapes = new Map<string, readonly number[]>();
  for (const set of sets) {
    let results: ReturnType<typeof evaluateValues>;
    try {
      results = evaluateValues(graph, module.opsets, set.feeds, {
        onValue: (value, data) => {
          expectFits(value, data);
          if (value.producer?.graph === graph) shapes.set(value.name, data.shape);
        },
      });
    } catch (error) {
      if (error instanceof NpucError && error.code === 'RT010') return `unsupported: ${error.message}`;
      throw error;
    }
    for (const [index, output] of graph.outputs.entries()) {
      const want = set.expected[index];
      const found = want && difference(results[output.name]!, want);
      if (!found) continue;
      return (await agreesWithOnnxRuntime(name, set, results as Record<string, TensorData>))
        ? `distrusted: ${found}, as ONNX Runtime says`
        : `fails: ${output.name}, ${found}`;
    }
  }
  expectSymbolicShapes(name, sets[0]!, shapes);
  return 'pass';
}

async function agreesWithOnnxRuntime(
  name: string,
  set: CaseData,
  results: Readonly<Record<string, TensorData>>,
): Promise<boolean> {
  const theirs = await runOnnx(readCaseModel(name), () => set.feeds as Record<string, TensorData>);
  return Object.entries(theirs.outputs).every(([output, want]) => difference(results[output]!, want) === undefined);
}

function expectFits(value: Value, data: TensorData): void {
  let type: ValueType | undefined = value.type;
  if (type?.kind === 'optional') type = type.element;
  if (!type) return;
  expect(type.kind, value.name).toBe('tensor');
  if (type.kind !== 'tensor') return;
  expect(type.dtype, value.name).toBe(data.dtype);
  const fits = type.shape?.map((dim, axis) => (typeof dim === 'number' ? dim : data.shape[axis]));
  if (fits) expect(fits, `${value.name} was inferred as [${type.shape}]`).toEqual([...data.shape]);
}

/**
 * The same case with a name for every input dimension above 1 and no declared types: what is inferred must give the
 * evaluated shapes when the names are bound.
 */
function expectSymbolicShapes(name: string, set: CaseData, shapes: ReadonlyMap<string, readonly number[]>): void {
  const module = openCase(name);
  const graph = module.graph();
  const bindings: Record<string, Dim> = {};
  for (const value of graph.values) if (value.producer) value.type = undefined;
  graph.inputs.forEach((input, index) => {
    const feed = set.feeds[input.name];
    if (input.type?.kind !== 'tensor' || !isTensorData(feed)) return;
    const named = feed.shape.map((dim, axis): Dim => {
      if (dim === 1) return 1;
      bindings[`s${index}_${axis}`] = dim;
      return `s${index}_${axis}`;
    });
    input.type = tensorType(feed.dtype, named);
  });
  inferShapes(module);
  for (const [valueName, shape] of shapes) {
    const type = graph.find(valueName)?.type;
    if (type?.kind !== 'tensor' || !type.shape) continue;
    const bound = type.shape.map((dim, axis) => {
      const size = bindDim(dim, bindings);
      if (!isUnknownDim(size)) return size;
      // A name of inference's own stands for one number wherever it occurs.
      bindings[String(size)] = shape[axis]!;
      return shape[axis]!;
    });
    expect(bound, `${valueName} was inferred as [${type.shape}]`).toEqual([...shape]);
  }
}

describe.skipIf(!hasBackendSuite)('ONNX backend suite', () => {
  for (const [name, expected] of Object.entries(TABLE)) {
    test(name, async () => {
      expect(await stateOf(name)).toBe(expected);
    });
  }
});

describe.skipIf(!hasMaterial)('the table of the ONNX backend suite', () => {
  test('has every case of the development split', () => {
    const list = materialPath('onnx-node-suite', 'split-dev.txt');
    expect(existsSync(list)).toBe(true);
    // `light/` holds whole networks without their weights, no cases of ops.
    const cases = readFileSync(list, 'utf8')
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('light/'));
    expect(Object.keys(TABLE)).toEqual(cases);
  });
});
