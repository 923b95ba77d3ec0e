import type { Attribute, Node, Value } from '../compiler/ir/graph.ts';
import { elementCount, Tensor } from '../compiler/ir/tensor.ts';
import { any, constant, either, type Match, op, type Pattern } from '../compiler/match.ts';
import { type Builder, type Rule, rewritePass } from '../compiler/rewrite.ts';
import { knownDType, knownRank } from '../compiler/value-facts.ts';

const conv: Pattern = either(
  ...['Conv', 'ConvTranspose'].flatMap((name) => [
    op(name, [any('x'), constant('w')], { as: 'conv' }),
    op(name, [any('x'), constant('w'), constant('b')], { as: 'conv' }),
  ]),
);

/**
 *     BatchNormalization(Conv(x, w, b), ...)   ->   Conv(x, w * s, b * s + t)     s = scale / sqrt(var + eps)
 *     Conv(x, w, b) * c                        ->   Conv(x, w * c, b * c)         c one number, or one per channel
 *     Conv(x, w, b) + c                        ->   Conv(x, w, b + c)
 *
 * A convolution that quantizes well has its normalization in its weights. The weights are promises: they are multiplied
 * when they are read. In f32 only, where one more rounding per weight is nothing.
 */
export const foldConvAffine = rewritePass({
  name: 'fold-conv-affine',
  about: 'batch normalization, scale and shift behind a convolution go into its weights',
  rules: [
    rule(
      op('BatchNormalization', [conv, constant('scale'), constant('shift'), constant('mean'), constant('variance')]),
      ['scale', 'shift', 'mean', 'variance'],
    ),
    rule(op('Mul', [conv, constant('factor')]), ['factor']),
    rule(op('Add', [conv, constant('term')]), ['term']),
  ],
});

/** A map y -> scale * y + shift per output channel. */
interface Affine {
  readonly scale: Float64Array;
  readonly shift: Float64Array;
}

function rule(pattern: Pattern, parts: readonly string[]): Rule {
  return {
    pattern,
    check: (match) => check(match, parts),
    rewrite: (match, build) => rewrite(match, build),
  };
}

function check(match: Match, parts: readonly string[]): true | string {
  const node = match.node('conv');
  const weight = match.value('w');
  if (knownDType(match.value('x')) !== 'f32' || weight.dtype !== 'f32') return `${node.name} is not in f32`;
  if (node.op === 'ConvTranspose' && node.int('group', 1) !== 1) return `${node.name} has groups`;
  for (const name of ['w', 'b', ...parts])
    if (match.has(name) && match.value(name).encoding) return `%${match.value(name).name} has an encoding`;
  if (match.root.int('training_mode', 0) === 1) return 'it is in training mode';
  const channels = channelsOf(node, weight);
  const rank = knownRank(node.output());
  for (const name of parts) {
    const value = match.value(name);
    const fits = match.root.op === 'BatchNormalization' || isPerChannel(value, channels, rank);
    if (!fits) return `%${value.name} is not one number, or one per channel`;
  }
  return true;
}

function channelsOf(node: Node, weight: Value): number {
  return weight.dims[node.op === 'Conv' ? 0 : 1]!;
}

/** Whether a constant broadcasts over [batch, channels, ...] as one number or one per channel. */
function isPerChannel(value: Value, channels: number, rank: number | undefined): boolean {
  const { shape, size } = value.data!;
  if (rank === undefined || shape.length > rank) return false;
  if (size === 1) return true;
  const axis = shape.length - rank + 1;
  return size === channels && shape[axis] === channels;
}

function affineOf(match: Match, channels: number): Affine {
  const { root } = match;
  const numbers = (name: string): Float64Array => {
    const data = match.value(name).data!.toFloats();
    return Float64Array.from({ length: channels }, (_, channel) => data[data.length === 1 ? 0 : channel]!);
  };
  const fill = (value: number): Float64Array => new Float64Array(channels).fill(value);
  if (root.op === 'Mul') return { scale: numbers('factor'), shift: fill(0) };
  if (root.op === 'Add') return { scale: fill(1), shift: numbers('term') };
  const [gain, offset, mean, variance] = [numbers('scale'), numbers('shift'), numbers('mean'), numbers('variance')];
  const epsilon = root.float('epsilon', 1e-5);
  const scale = gain.map((value, channel) => value / Math.sqrt(variance[channel]! + epsilon));
  return { scale, shift: offset.map((value, channel) => value - mean[channel]! * scale[channel]!) };
}

function rewrite(match: Match, build: Builder): Value {
  const node = match.node('conv');
  const weight = match.value('w');
  const channels = channelsOf(node, weight);
  const { scale, shift } = affineOf(match, channels);
  const bias = match.has('b') ? match.value('b').data!.toFloats() : undefined;
  const moved = Float32Array.from(shift, (value, channel) => value + (bias?.[channel] ?? 0) * scale[channel]!);
  const isScaled = scale.some((factor) => factor !== 1);
  const scaled = isScaled
    ? build.graph.addConstant(weight.name, scaleWeight(weight.data!, scale, node.op === 'Conv' ? 0 : 1))
    : weight;
  const name = match.has('b') ? match.value('b').name : 'bias';
  const needsBias = match.has('b') || moved.some((value) => value !== 0);
  const shifted = needsBias ? [build.graph.addConstant(name, Tensor.of('f32', [channels], moved))] : [];
  const attributes: Record<string, Attribute> = Object.fromEntries(node.attributes);
  return build.emit(node.op, [match.value('x'), scaled, ...shifted], { attributes });
}

/** A weight times one factor per index of an axis, computed when it is read. */
function scaleWeight(source: Tensor, factors: Float64Array, axis: number): Tensor {
  const inner = elementCount(source.shape.slice(axis + 1));
  const compute = (): Uint8Array => {
    const out = source.toFloats().map((value, at) => value * factors[Math.floor(at / inner) % factors.length]!);
    return new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
  };
  return new Tensor('f32', source.shape, { kind: 'derived', compute });
}
