import { type Attribute, intAttribute, type Node, stringAttribute, type Value } from '../compiler/ir/graph.ts';
import { Tensor } from '../compiler/ir/tensor.ts';
import type { Builder, NodeChange } from '../compiler/rewrite.ts';
import { knownDType, knownShape, scalarTensor } from '../compiler/value-facts.ts';

/** What stands in the place of a node: the same node with other parts, or a fresh value built from others. */
export type Adapted = NodeChange | { readonly value: Value };

/** Rewrites one node for the opset in which its operator changed; undefined when this node means the same there. */
type Adapt = (node: Node, build: Builder) => Adapted | undefined;

export interface Adapter {
  readonly adapt: Adapt;
  /** Why a node cannot be lifted. Asked of every node before any is rewritten. */
  readonly refuse?: (node: Node) => string | undefined;
}

/**
 * What changed in operators, by the opset that changed it (ONNX Changelog.md): attributes that became inputs, defaults
 * and meanings that became others, operators that were replaced. Operators not listed only gained types or options.
 */
export const ADAPTERS: ReadonlyMap<number, Readonly<Record<string, Adapter>>> = new Map<
  number,
  Readonly<Record<string, Adapter>>
>([
  [
    9,
    {
      BatchNormalization: { adapt: dropSpatial, refuse: refuseSpatial },
      Upsample: { adapt: moveFloats('scales') },
    },
  ],
  [
    10,
    { Slice: { adapt: moveSlice }, TopK: { adapt: moveInt('k', 1) }, Upsample: { adapt: () => ({ op: 'Resize' }) } },
  ],
  [
    11,
    {
      Clip: { adapt: moveLimits, refuse: refuseUntyped },
      Pad: { adapt: movePads, refuse: refuseUntyped },
      Resize: { adapt: pinCoordinates },
      Scatter: { adapt: () => ({ op: 'ScatterElements' }) },
    },
  ],
  [12, { Dropout: { adapt: moveRatio } }],
  [
    13,
    {
      ...forEach(['Softmax', 'LogSoftmax', 'Hardmax'], { adapt: spanAxes, refuse: refuseUnranked }),
      ...forEach(['Squeeze', 'Unsqueeze', 'ReduceSum'], { adapt: moveInts('axes') }),
      Split: { adapt: moveInts('split') },
    },
  ],
  [14, { BatchNormalization: { adapt: () => undefined, refuse: refuseTraining } }],
  [16, { RoiAlign: { adapt: pinRoiCoordinates } }],
  [
    18,
    {
      ...forEach(
        ['L1', 'L2', 'LogSum', 'LogSumExp', 'Max', 'Mean', 'Min', 'Prod', 'SumSquare'].map((kind) => `Reduce${kind}`),
        { adapt: moveInts('axes') },
      ),
      Split: { adapt: countOutputs },
    },
  ],
  [20, { GridSample: { adapt: renameModes }, DFT: { adapt: moveInt('axis', 2) } }],
  [21, { GroupNormalization: { adapt: spreadGroups, refuse: refuseUnknownChannels } }],
]);

function forEach(operators: readonly string[], adapter: Adapter): Record<string, Adapter> {
  return Object.fromEntries(operators.map((op) => [op, adapter]));
}

function without(node: Node, ...names: string[]): Map<string, Attribute> {
  return new Map([...node.attributes].filter(([name]) => !names.includes(name)));
}

function withAttribute(node: Node, name: string, attribute: Attribute): Adapted {
  return { attributes: new Map(node.attributes).set(name, attribute) };
}

/** Inputs with one at an index, absent ones before it as they are. */
function inputsWith(node: Node, index: number, value: Value): (Value | undefined)[] {
  const inputs = [...node.inputs];
  while (inputs.length < index) inputs.push(undefined);
  inputs[index] = value;
  return inputs;
}

function moveInts(name: string): Adapt {
  return (node, build) => {
    const values = node.ints(name);
    if (!values) return undefined;
    return { inputs: inputsWith(node, 1, build.integers(name, values)), attributes: without(node, name) };
  };
}

function moveInt(name: string, index: number): Adapt {
  return (node, build) => {
    const value = node.int(name);
    if (value === undefined) return undefined;
    // TopK's k is a vector of one, DFT's axis a scalar.
    const tensor = name === 'k' ? Tensor.of('i64', [1], [value]) : Tensor.of('i64', [], [value]);
    return { inputs: inputsWith(node, index, build.graph.addConstant(name, tensor)), attributes: without(node, name) };
  };
}

function moveFloats(name: string): Adapt {
  return (node, build) => {
    const values = node.floats(name);
    if (!values) return undefined;
    const input = build.graph.addConstant(name, Tensor.of('f32', [values.length], values));
    return { inputs: inputsWith(node, 1, input), attributes: without(node, name) };
  };
}

function dropSpatial(node: Node): Adapted | undefined {
  return node.attributes.has('spatial') ? { attributes: without(node, 'spatial') } : undefined;
}

function refuseSpatial(node: Node): string | undefined {
  return node.int('spatial', 1) === 1 ? undefined : 'statistics per element (spatial 0) are gone since opset 9';
}

/** A limit or padding value needs the type of what it limits. */
function refuseUntyped(node: Node): string | undefined {
  return knownDType(node.inputs[0]) ? undefined : `the type of %${node.input(0).name} is not known`;
}

function moveSlice(node: Node, build: Builder): Adapted | undefined {
  const [starts, ends] = [node.ints('starts'), node.ints('ends')];
  if (!starts || !ends) return undefined;
  const axes = node.ints('axes') ?? starts.map((_, axis) => axis);
  const inputs = [
    node.inputs[0],
    build.integers('starts', starts),
    build.integers('ends', ends),
    build.integers('axes', axes),
  ];
  return { inputs, attributes: without(node, 'starts', 'ends', 'axes') };
}

/** Clip-6's limits default to those of f32, which limit nothing. */
function moveLimits(node: Node, build: Builder): Adapted | undefined {
  const limit = (name: 'min' | 'max'): Value | undefined =>
    node.attributes.has(name)
      ? build.graph.addConstant(name, scalarTensor(node.input(0).dtype, node.float(name, 0)))
      : undefined;
  const [min, max] = [limit('min'), limit('max')];
  return { inputs: [node.inputs[0], min, ...(max ? [max] : [])], attributes: without(node, 'min', 'max') };
}

function movePads(node: Node, build: Builder): Adapted | undefined {
  const pads = node.ints('pads');
  if (!pads) return undefined;
  const value = node.float('value', 0);
  const constant = value === 0 ? [] : [build.graph.addConstant('value', scalarTensor(node.input(0).dtype, value))];
  return {
    inputs: [node.inputs[0], build.integers('pads', pads), ...constant],
    attributes: without(node, 'pads', 'value'),
  };
}

/** Resize-10 maps coordinates by the scale alone and rounds down; later ones do so when they are told. */
function pinCoordinates(node: Node): Adapted {
  const attributes = new Map(node.attributes)
    .set('coordinate_transformation_mode', stringAttribute('asymmetric'))
    .set('nearest_mode', stringAttribute('floor'));
  return { inputs: [node.inputs[0], undefined, node.inputs[1]], attributes };
}

function moveRatio(node: Node, build: Builder): Adapted | undefined {
  if (!node.attributes.has('ratio')) return undefined;
  const ratio = build.graph.addConstant('ratio', Tensor.scalar('f32', node.float('ratio', 0.5)));
  return { inputs: [node.inputs[0], ratio], attributes: without(node, 'ratio') };
}

/**
 * Before opset 13 Softmax ran over all axes from `axis` (1 by default) on; since then over one. Where that is the last one
 * they agree; elsewhere the axes are joined first.
 */
function spanAxes(node: Node, build: Builder): Adapted {
  const shape = knownShape(node.inputs[0]) ?? [];
  const given = node.int('axis', 1);
  const axis = given < 0 ? given + shape.length : given;
  if (given === -1 || axis >= shape.length - 1) return withAttribute(node, 'axis', intAttribute(-1));
  const flat = build.emit('Flatten', [node.inputs[0]], { attributes: { axis: intAttribute(axis) } });
  const result = build.emit(node.op, [flat], { attributes: { axis: intAttribute(-1) } });
  const target = shape.every((dim): dim is number => typeof dim === 'number')
    ? build.integers('shape', shape)
    : build.emit('Shape', [node.inputs[0]]);
  return { value: build.emit('Reshape', [result, target]) };
}

function refuseUnranked(node: Node): string | undefined {
  const isKnown = node.int('axis', 1) === -1 || knownShape(node.inputs[0]) !== undefined;
  return isKnown ? undefined : `the rank of %${node.input(0).name} is not known`;
}

function refuseTraining(node: Node): string | undefined {
  const extra = node.outputs.some((output, index) => index > 0 && output !== undefined);
  return extra ? 'it gives out statistics: it is in training form' : undefined;
}

function pinRoiCoordinates(node: Node): Adapted | undefined {
  if (node.attributes.has('coordinate_transformation_mode')) return undefined;
  return withAttribute(node, 'coordinate_transformation_mode', stringAttribute('output_half_pixel'));
}

/** Since opset 18 equal parts must be counted. */
function countOutputs(node: Node): Adapted | undefined {
  if (node.inputs[1] || node.attributes.has('num_outputs')) return undefined;
  return withAttribute(node, 'num_outputs', intAttribute(node.outputs.length));
}

function renameModes(node: Node): Adapted | undefined {
  const names: Readonly<Record<string, string>> = { bilinear: 'linear', bicubic: 'cubic' };
  const name = names[node.string('mode', 'bilinear')];
  return name === undefined ? undefined : withAttribute(node, 'mode', stringAttribute(name));
}

/** Scale and bias per group became scale and bias per channel. */
function spreadGroups(node: Node, build: Builder): Adapted {
  const groups = node.int('num_groups', 1);
  const channels = channelsOf(node)!;
  const spread = (value: Value): Value => {
    const column = build.emit('Reshape', [value, build.integers('column', [groups, 1])]);
    const wide = build.emit('Expand', [column, build.integers('spread', [groups, channels / groups])]);
    return build.emit('Reshape', [wide, build.integers('channels', [channels])]);
  };
  return { inputs: [node.inputs[0], spread(node.input(1)), spread(node.input(2))] };
}

function channelsOf(node: Node): number | undefined {
  const channels = knownShape(node.inputs[0])?.[1];
  return typeof channels === 'number' ? channels : undefined;
}

function refuseUnknownChannels(node: Node): string | undefined {
  return channelsOf(node) === undefined ? `the channels of %${node.input(0).name} are not known` : undefined;
}
