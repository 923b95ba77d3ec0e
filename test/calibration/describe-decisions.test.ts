import { describe, expect, test } from 'vitest';
import type { Decision } from '../../calibration/describe-decisions.ts';
import type { QuantizedDecoder } from '../../calibration/quantize-decoder.ts';
import { demo } from '../cli/run-npuc.ts';
import { openSmallDecoder, type SmallDecoder } from '../targets/small-decoder.ts';

const small: SmallDecoder = await openSmallDecoder(demo);
const find = (decisions: readonly Decision[], name: string): Decision =>
  decisions.find(({ values }) => values.includes(name))!;

describe('the decisions about a decoder', () => {
  let w8a8: QuantizedDecoder;
  let decisions: readonly Decision[];
  test('are about every value of the plan, each once', async () => {
    w8a8 = await small.quantize('w8a8', 'qnn');
    decisions = w8a8.explain();
    const names = decisions.flatMap(({ values }) => values);
    expect(new Set(names).size).toBe(names.length);
    expect(new Set(names)).toEqual(new Set([...w8a8.plan.activations.keys(), ...w8a8.weightEncodings.keys()]));
  });

  test('say where a range comes from, and it is that range', () => {
    for (const { values, range, spans, dtype, scales, kind } of decisions) {
      if (range?.source !== 'calibration' || !dtype.startsWith('u') || kind === 'cache') continue;
      const seen = range.seen!;
      expect(range.method).toBe('min-max');
      if (range.constants) {
        // A table's rows that calibration has not met widen the range.
        expect(range.constants).toEqual(['model.embed_tokens.weight']);
        expect(spans![0]).toBeLessThan(Math.min(...seen.map(({ min }) => min)));
        continue;
      }
      const least = Math.min(0, ...seen.map(({ min }) => min));
      const most = Math.max(0, ...seen.map(({ max }) => max));
      expect(Math.abs(spans![0] - least), values[0]).toBeLessThanOrEqual(scales.least * 1.001);
      expect(Math.abs(spans![1] - most), values[0]).toBeLessThanOrEqual(scales.least * 1.001);
    }
    expect(find(decisions, 'layers.0.probs').range).toEqual({ source: 'kernel' });
    expect(find(decisions, 'model.layers.0.input_layernorm.weight')).toMatchObject({
      kind: 'constant',
      range: { source: 'constant' },
      nodes: ['model.layers.0.input_layernorm'],
    });
  });

  test('say what has 16 bits and why, what shares an encoding, and which caches there are', () => {
    expect(find(decisions, 'layers.1.attn_norm')).toMatchObject({ dtype: 'u16', why: 'it reads the residual stream' });
    expect(find(decisions, 'past_key_1_in')).toMatchObject({ kind: 'cache', dtype: 'u8', zeroPoint: 128 });
    const tied = find(decisions, 'past_key_1_in').values;
    expect(tied).toContain('past_key_1_out');
    const { activations } = w8a8.plan;
    for (const name of tied) expect(activations.get(name)!.encoding).toBe(activations.get(tied[0]!)!.encoding);
  });

  test('say where scale was moved, and how weights were rounded', async () => {
    const into = ['q_proj', 'k_proj', 'v_proj'].map((name) => `model.layers.2.self_attn.${name}.weight`);
    const moved = { from: 'layers.2.attn_norm', into, exponent: 0.5 };
    expect(find(decisions, 'layers.2.attn_norm').moved).toEqual(moved);
    expect(find(decisions, into[1]!)).toMatchObject({ moved, rounding: 'nearest', weighedBy: 'layers.2.attn_norm' });
    expect(find(decisions, 'layers.2.q_proj').moved).toBeUndefined();
    const w4a16 = (await small.quantize('w4a16', 'onnx', { block: 32 })).explain();
    expect(find(w4a16, 'model.layers.1.mlp.down_proj.weight')).toMatchObject({
      kind: 'weight',
      dtype: 'i4',
      form: 'lpbq',
      block: 32,
      rounding: 'gptq',
      nodes: ['model.layers.1.mlp.down_proj'],
    });
    expect(find(w4a16, 'lm_head.weight')).toMatchObject({ dtype: 'i8', rounding: 'nearest' });
    expect(find(w4a16, 'model.embed_tokens.weight')).toMatchObject({ kind: 'table', form: 'channel' });
  });

  test('say what was clipped', async () => {
    const clipped = (await small.quantize('w8a8', 'onnx', { range: 'percentile' })).explain();
    const cut = clipped.flatMap(({ range }) => range?.seen ?? []).filter(({ taken }) => taken);
    expect(cut.length).toBeGreaterThan(20);
    for (const { min, max, taken } of cut) {
      expect(taken![0]).toBeGreaterThanOrEqual(min);
      expect(taken![1]).toBeLessThanOrEqual(max);
      expect(taken![1] - taken![0]).toBeLessThan(max - min);
    }
  });
});
