import { NpucError } from '../compiler/errors.ts';
import { bindShape, dimSymbols, simplifyDim } from '../compiler/ir/dims.ts';
import { type Dim, type Graph, type Shape, tensorType, type Value, type ValueType } from '../compiler/ir/graph.ts';
import { printType } from '../compiler/ir/text.ts';
import { inferShapes } from '../compiler/ops/infer-shapes.ts';
import type { Pass, PassContext } from '../compiler/pass.ts';
import { foldConstants } from './fold-constants.ts';
import { inlineConstantBranches } from './inline-constant-branches.ts';

export interface FreezeOptions {
  /** Lengths of symbolic dimensions by name: `{ batch_size: 1, past_sequence_length: 192 }`. */
  readonly bindings?: Readonly<Record<string, number>>;
  /** Whole shapes of inputs by name; what they say about symbols holds everywhere. */
  readonly inputs?: Readonly<Record<string, readonly number[]>>;
}

/**
 *     in %ids : i64[batch, tokens]      bindings batch 1, tokens 64      ->   in %ids : i64[1,64]
 *
 * Binds the symbolic dimensions of a graph's inputs, infers all shapes again, folds the shape arithmetic that became
 * constant and inlines the branches it decides, until every dimension is a number. Dynamic ONNX exports of language models
 * freeze in the same way: `past_sequence_length`, `sequence_length` and what is computed from them, such as
 * `past_sequence_length + sequence_length` of a mask.
 */
export function freezeShapes(options: FreezeOptions): Pass {
  return {
    name: 'freeze-shapes',
    about: 'binds symbolic dimensions and computes what depends on them',
    scope: 'top graphs',
    ensures: ['frozen'],
    run: (graph, context) => {
      const bindings = solveBindings(graph, options);
      const bound = bindValues(graph, bindings);
      const shaped = shapeInputs(graph, options.inputs ?? {});
      inferShapes(graph, context.module.opsets);
      let folds = 0;
      for (; foldOnce(graph, context); folds++) inferShapes(graph, context.module.opsets);
      requireFixed(graph);
      return bound || shaped || folds > 0;
    },
  };
}

/** Folds and inlines everywhere in a graph, innermost first. */
function foldOnce(graph: Graph, context: PassContext): boolean {
  let changed = false;
  for (const node of [...graph.nodes]) for (const inner of node.subgraphs) if (foldOnce(inner, context)) changed = true;
  if (foldConstants.run(graph, context)) changed = true;
  return inlineConstantBranches.run(graph, context) || changed;
}

/** What every symbol stands for, from names and from whole input shapes. @throws PS110, PS111 */
function solveBindings(graph: Graph, options: FreezeOptions): Record<string, number> {
  const bindings: Record<string, number> = { ...options.bindings };
  const known = new Set(graph.inputs.flatMap((input) => shapeOf(input)?.flatMap((dim) => dimSymbols(dim)) ?? []));
  for (const [name, length] of Object.entries(bindings)) {
    if (!Number.isSafeInteger(length) || length < 0)
      throw new NpucError('PS111', {
        message: `${length} is no length for the dimension ${name}`,
        where: `@${graph.name}`,
      });
    if (!known.has(name))
      throw new NpucError('PS111', {
        message: `no input has a dimension ${name}`,
        where: `@${graph.name}`,
        hint:
          known.size > 0 ? `the dimensions are ${[...known].sort().join(', ')}` : 'the graph has fixed shapes already',
      });
  }
  for (const [name, shape] of Object.entries(options.inputs ?? {})) solveInput(graph, name, shape, bindings);
  return bindings;
}

function solveInput(graph: Graph, name: string, shape: readonly number[], bindings: Record<string, number>): void {
  const input = graph.inputs.find((value) => value.name === name);
  if (!input)
    throw new NpucError('PS111', {
      message: `the graph has no input ${name}`,
      where: `@${graph.name}`,
      hint: `the inputs are ${graph.inputs.map((value) => value.name).join(', ')}`,
    });
  const declared = shapeOf(input);
  if (!declared) return;
  const misfit = (): NpucError =>
    new NpucError('PS111', { message: `[${shape}] does not fit ${printType(input.type)}`, where: name });
  if (declared.length !== shape.length) throw misfit();
  declared.forEach((dim, axis) => {
    const length = shape[axis]!;
    if (typeof dim === 'string' && isName(dim) && !Object.hasOwn(bindings, dim)) bindings[dim] = length;
  });
  const bound = bindShape(declared, bindings);
  if (bound.some((dim, axis) => typeof dim === 'number' && dim !== shape[axis])) throw misfit();
}

/** A symbol of its own, not an expression. Exporters write `?` for any length: it is no name, and differs from itself. */
function isName(dim: string): boolean {
  return /[\p{L}\p{N}]/u.test(dim) && dimSymbols(dim).join() === dim;
}

function shapeOf(value: Value): Shape | undefined {
  return value.type?.kind === 'tensor' ? value.type.shape : undefined;
}

/** Puts numbers in the place of symbols in every type of a graph and its subgraphs. */
function bindValues(graph: Graph, bindings: Readonly<Record<string, number>>): boolean {
  let changed = false;
  for (const value of graph.values) {
    const bound = bindType(value.type, bindings);
    if (bound === value.type) continue;
    value.type = bound;
    changed = true;
  }
  for (const node of graph.nodes) for (const inner of node.subgraphs) if (bindValues(inner, bindings)) changed = true;
  return changed;
}

function bindType(type: ValueType | undefined, bindings: Readonly<Record<string, number>>): ValueType | undefined {
  if (type?.kind === 'sequence' || type?.kind === 'optional') {
    const element = bindType(type.element, bindings);
    return element === type.element ? type : { kind: type.kind, element };
  }
  if (type?.kind !== 'tensor' || !type.shape?.some((dim) => typeof dim === 'string')) return type;
  const shape = bindShape(type.shape, bindings).map(simplifyDim);
  return shape.every((dim, axis) => dim === type.shape![axis]) ? type : tensorType(type.dtype, shape);
}

/** Gives inputs the shapes asked for: those of unknown rank have no symbols to bind. */
function shapeInputs(graph: Graph, shapes: Readonly<Record<string, readonly number[]>>): boolean {
  let changed = false;
  for (const input of graph.inputs) {
    const shape = shapes[input.name];
    if (!shape || input.type?.kind !== 'tensor' || String(input.type.shape) === String(shape)) continue;
    input.type = tensorType(input.type.dtype, [...shape]);
    changed = true;
  }
  return changed;
}

/** @throws PS110 naming the inputs that need a binding; PS112 naming the first value whose shape only the data decides */
function requireFixed(graph: Graph): void {
  const open = graph.inputs.filter((input) => !isFixed(input.type));
  if (open.length > 0) {
    const symbols = [...new Set(open.flatMap((input) => (shapeOf(input) ?? []).flatMap((dim) => dimSymbols(dim))))];
    const names = open.map((input) => `${input.name} ${printType(input.type)}`).join(', ');
    throw new NpucError('PS110', {
      message: `these inputs have no fixed shape: ${names}`,
      where: `@${graph.name}`,
      hint:
        symbols.length > 0
          ? `--bind ${symbols.map((name) => `${name}=<length>`).join(' ')}`
          : `give the shapes of ${open.map((input) => input.name).join(', ')}`,
    });
  }
  const value = firstOpen(graph);
  if (!value) return;
  const maker = value.producer;
  throw new NpucError('PS112', {
    message: `the shape of ${value.name} is not fixed: ${printType(value.type)}`,
    where: maker ? `${maker.name || maker.op} (${maker.op})` : value.name,
    hint: 'its shape depends on data, or the operator is not known to shape inference',
  });
}

function firstOpen(graph: Graph): Value | undefined {
  for (const node of graph.nodes) {
    for (const inner of node.subgraphs) {
      const open = firstOpen(inner);
      if (open) return open;
    }
    const open = node.outputs.find((output) => output && !isFixed(output.type));
    if (open) return open;
  }
  return undefined;
}

function isFixed(type: ValueType | undefined): boolean {
  if (type === undefined) return false;
  return type.kind !== 'tensor' || (type.shape?.every((dim: Dim) => typeof dim === 'number') ?? false);
}
