import { intAttribute, type Value } from '../compiler/ir/graph.ts';
import { any, either, type Match, op } from '../compiler/match.ts';
import { type Builder, rewritePass } from '../compiler/rewrite.ts';
import { knownRank, knownShape, lastLength } from '../compiler/value-facts.ts';

/**
 *     RotaryEmbedding(x, cos, sin)   ->   x1, x2 = Split(x);  Concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin)
 *
 * x is [batch, heads, tokens, d], or [batch, tokens, heads * d] with num_heads. Tables are half as wide as what is rotated:
 * [batch, tokens, r/2], or [positions, r/2] gathered by position ids. `interleaved` pairs neighbours instead of halves;
 * with rotary_embedding_dim r < d the rest passes through. HTP computes this form at 86.7 dB, the operator at 69.1 (u16,
 * facts qnn-htp).
 */
export const decomposeRope = rewritePass({
  name: 'decompose-rope',
  about: 'RotaryEmbedding becomes Split, Mul, Sub, Add, Concat',
  rules: [
    {
      pattern: either(
        op('RotaryEmbedding', [any('x'), any('cos'), any('sin')]),
        op('RotaryEmbedding', [any('x'), any('cos'), any('sin'), any('positions')]),
      ),
      check: checkRotary,
      rewrite: writeRotary,
    },
  ],
});

function checkRotary(match: Match): true | string {
  const x = match.value('x');
  const rank = knownRank(x);
  if (rank !== 3 && rank !== 4) return `the rank of %${x.name} is not 3 or 4`;
  if (rank === 3 && match.root.int('num_heads', 0) < 1) return `num_heads of ${match.root.name} is missing`;
  return headWidth(match) === undefined ? `the width of %${x.name} is not known` : true;
}

/** Width of one head. */
function headWidth(match: Match): number | undefined {
  const x = match.value('x');
  const width = lastLength(x);
  if (width === undefined) return undefined;
  return knownShape(x)!.length === 4 ? width : width / match.root.int('num_heads', 1);
}

function writeRotary(match: Match, build: Builder): Value {
  const { root } = match;
  const input = match.value('x');
  const isFlat = knownShape(input)!.length === 3;
  const width = headWidth(match)!;
  const rotary = root.int('rotary_embedding_dim', 0) || width;
  const heads = root.int('num_heads', 0);
  const x = isFlat ? build.emit('Reshape', [input, build.integers('heads', [0, 0, heads, width])]) : input;
  // The axis of heads: tables have none, so they are spread over it.
  const headsAxis = build.integers('axes', [isFlat ? 2 : 1]);
  const table = (name: 'cos' | 'sin'): Value => {
    const cache = match.value(name);
    const rows = match.has('positions') ? build.emit('Gather', [cache, match.value('positions')]) : cache;
    return build.emit('Unsqueeze', [rows, headsAxis]);
  };
  const [turned, rest] = rotary < width ? cut(x, [rotary, width - rotary], build) : [x, undefined];
  const isInterleaved = root.int('interleaved', 0) === 1;
  const [a, b] = isInterleaved ? neighbours(turned!, build) : cut(turned!, [rotary / 2, rotary / 2], build);
  const cos = table('cos');
  const sin = table('sin');
  const mul = (left: Value, right: Value): Value => build.emit('Mul', [left, right]);
  const real = build.emit('Sub', [mul(a!, cos), mul(b!, sin)]);
  const imaginary = build.emit('Add', [mul(b!, cos), mul(a!, sin)]);
  const joined = isInterleaved ? interleave(real, imaginary, build) : concat([real, imaginary], build);
  const whole = rest ? concat([joined, rest], build) : joined;
  return isFlat ? build.emit('Reshape', [whole, build.integers('flat', [0, 0, heads * width])]) : whole;
}

/** Pieces along the last axis. */
function cut(x: Value, lengths: readonly number[], build: Builder): Value[] {
  const outputs = lengths.map((_, index) => build.graph.addValue(`${x.name}_part_${index}`));
  build.node('Split', [x, build.integers('lengths', lengths)], outputs, { axis: intAttribute(-1) });
  return outputs;
}

function concat(parts: readonly Value[], build: Builder): Value {
  return build.emit('Concat', parts, { attributes: { axis: intAttribute(-1) } });
}

/** Elements 0, 2, 4 ... and 1, 3, 5 ... of the last axis. */
function neighbours(x: Value, build: Builder): Value[] {
  const end = build.integers('end', [Number.MAX_SAFE_INTEGER]);
  const [axis, step] = [build.integers('axis', [-1]), build.integers('step', [2])];
  return [0, 1].map((start) => build.emit('Slice', [x, build.integers('start', [start]), end, axis, step]));
}

/** a0 b0 a1 b1 ... along the last axis of rank-4 values. */
function interleave(a: Value, b: Value, build: Builder): Value {
  const axes = build.integers('axes', [-1]);
  const pairs = concat(
    [a, b].map((part) => build.emit('Unsqueeze', [part, axes])),
    build,
  );
  return build.emit('Reshape', [pairs, build.integers('pairs', [0, 0, 0, -1])]);
}
