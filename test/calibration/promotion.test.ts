import { describe, expect, test } from 'vitest';
import { planPrecision } from '../../calibration/precision.ts';
import { makeRecipe, onnxFormat } from '../../calibration/recipe.ts';
import type { ValueStatistics } from '../../calibration/statistics.ts';
import { parseModule } from '../../compiler/ir/text.ts';
import { inferShapes } from '../../compiler/ops/infer-shapes.ts';

/** A range of 256 and what a typical row has of it: 20 log10(typical / (1.004 / sqrt(12))) dB are kept at 8 bits. */
const seen = (typical: number): ValueStatistics => ({ min: -128, max: 128, typical });
const GOOD = seen(30);
/** 17 dB. */
const DROWNING = seen(2);

/** A block of a decoder: residual stream, norm, gated MLP, behind it a masked softmax. */
const BLOCK = `npuir 1
opset 23
graph @block
  in %x : f32[4,64]
  in %mask : f32[4,4]
  %g : f32[64] = const rand(1, normal 1)
  %up : f32[64,64] = const rand(2, normal 0.1)
  %gate : f32[64,64] = const rand(3, normal 0.1)
  %down : f32[64,64] = const rand(4, normal 0.1)
  %score : f32[64,4] = const rand(5, normal 0.1)
  %stream = Add(%x, %x)
  %norm = RMSNormalization(%stream, %g)
  %u = MatMul(%norm, %up)
  %v = MatMul(%norm, %gate)
  %product = Mul(%u, %v)
  %d = MatMul(%product, %down)
  %sum = Add(%d, %d)
  %s = MatMul(%sum, %score)
  %masked = Add(%s, %mask)
  %p = Softmax(%masked)
  out %p
`;

function widths(scheme: string, statistics: Record<string, ValueStatistics>): Record<string, number> {
  const module = parseModule(BLOCK);
  inferShapes(module);
  const graph = module.graph();
  const all = new Map([...graph.values].map((value) => [value.name, statistics[value.name] ?? GOOD]));
  all.set('mask', { min: -50, max: 0, typical: 35 });
  const { nodes } = planPrecision(graph, 23, makeRecipe(scheme), onnxFormat, all);
  return Object.fromEntries([...nodes].map(([node, bits]) => [node.output().name, bits]));
}

describe('promotion to 16 bits', () => {
  const structural = { stream: 16, norm: 16, masked: 16, p: 16 };
  const narrow = { u: 8, v: 8, product: 8, d: 8, sum: 8, s: 8 };

  test('the residual stream, norms and what the mask touches, nothing else when values are healthy', () => {
    expect(widths('w8a8', {})).toEqual({ ...structural, ...narrow });
  });

  test('a value that drowns takes with it what writes it and what reads it', () => {
    expect(widths('w8a8', { product: DROWNING })).toEqual({ ...structural, ...narrow, product: 16, d: 16 });
    expect(widths('w8a8', { d: DROWNING })).toEqual({ ...structural, ...narrow, d: 16, sum: 16 });
  });

  test('nothing is to be promoted at 16 bits', () => {
    expect(new Set(Object.values(widths('w8a16', { product: DROWNING })))).toEqual(new Set([16]));
  });
});
