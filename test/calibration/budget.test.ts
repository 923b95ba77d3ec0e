import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  choosePromotions,
  formBytes,
  groupName,
  promotableGroups,
  promotionOverrides,
  requireBudget,
  type SensitiveGroup,
} from '../../calibration/budget.ts';
import { buildPlainDecoder } from '../../calibration/decoder-statistics.ts';
import { measureSensitivity } from '../../calibration/measure-sensitivity.ts';
import { Tensor } from '../../compiler/ir/tensor.ts';
import { DecoderSession } from '../../compiler/runtime/decoder-session.ts';
import { openModule } from '../../compiler/runtime/engine.ts';
import { plainContract } from '../../passes/io-contract.ts';
import { makeProtocol } from '../../passes/protocol.ts';
import { demo } from '../cli/run-npuc.ts';
import { openSmallDecoder } from '../targets/small-decoder.ts';

const groups = fc
  .array(
    fc.record({ cost: fc.integer({ min: 1, max: 1000 }), divergence: fc.double({ min: 0, max: 1, noNaN: true }) }),
    {
      minLength: 1,
      maxLength: 40,
    },
  )
  .map((all) => all.map((each, i): SensitiveGroup => ({ ...each, name: `g${i}`, weights: [`w${i}`] })));

describe('what a budget buys', () => {
  test('is within the budget, leaves no room that a group would fill, and is a curve that never rises', () => {
    fc.assert(
      fc.property(groups, fc.integer({ min: 0, max: 20_000 }), (all, room) => {
        const { curve, taken } = choosePromotions(all, 5000, { bytes: 5000 + room });
        const used = all.reduce((sum, { name, cost }) => sum + (taken.has(name) ? cost : 0), 0);
        expect(used).toBeLessThanOrEqual(room);
        for (const { name, cost } of all) if (!taken.has(name)) expect(used + cost).toBeGreaterThan(room);
        expect(curve.length).toBe(all.length);
        curve.forEach(({ bytes, left, cost, divergence }, i) => {
          expect(bytes).toBe((curve[i - 1]?.bytes ?? 5000) + cost);
          expect(left).toBeLessThanOrEqual(curve[i - 1]?.left ?? Number.POSITIVE_INFINITY);
          const next = curve[i + 1];
          if (next) expect(divergence / cost).toBeGreaterThanOrEqual(next.divergence / next.cost);
        });
        expect(curve.at(-1)!.left).toBeCloseTo(0, 9);
      }),
    );
  });

  test('does not depend on the order of the groups', () => {
    fc.assert(
      fc.property(groups, (all) => {
        const there = choosePromotions(all, 0, { bytes: 3000 });
        const back = choosePromotions([...all].reverse(), 0, { bytes: 3000 });
        expect(back.curve.map(({ name }) => name)).toEqual(there.curve.map(({ name }) => name));
      }),
    );
  });

  test('is overrides of single weights that say what they cost and bought', () => {
    const all = [{ name: 'layers.0 down', weights: ['a.weight', 'b.weight'], cost: 64_000, divergence: 0.0123 }];
    const { curve, taken } = choosePromotions(all, 0, { bytes: 64_000 });
    expect(promotionOverrides(curve, taken)).toEqual(
      ['^a\\.weight$', '^b\\.weight$'].map((match) => ({
        match,
        weight: { bits: 8, block: 0 },
        why: 'budget: 8 bits for layers.0 down cost 0.064 MB; at 4 bits alone it has KL 0.0123',
      })),
    );
  });

  test('one that is too small is an error that names the smallest', () => {
    expect(() => requireBudget({ bytes: 5 }, 2_314_240)).toThrowError(
      expect.objectContaining({ code: 'QT140', hint: expect.stringMatching(/--budget "weights<=2\.32MB"/) as string }),
    );
    expect(() => requireBudget({ bytes: 2_320_000 }, 2_314_240)).not.toThrow();
  });

  test('groups are what reads one input; what an override chose is not promoted', () => {
    const at = 'model.layers.3';
    expect(groupName(`${at}.self_attn.k_proj.weight`)).toBe('layers.3 q,k,v');
    expect(groupName(`${at}.mlp.up_proj.weight`)).toBe('layers.3 gate,up');
    expect(groupName(`${at}.mlp.down_proj.weight`)).toBe('layers.3 down');
    expect(groupName('lm_head.weight')).toBeUndefined();
    const plan = (name: string, bits: 4 | 8, why: string) =>
      [name, { name, form: { bits, block: 0 }, axis: 1, matrix: true, input: 'x', biases: [], why }] as const;
    const weights = new Map([
      plan(`${at}.self_attn.q_proj.weight`, 4, 'scheme w4a16'),
      plan(`${at}.self_attn.v_proj.weight`, 4, 'override v_proj'),
      plan(`${at}.mlp.down_proj.weight`, 8, 'scheme w4a16'),
    ]);
    expect(promotableGroups({ weights })).toEqual(new Map([['layers.3 q,k,v', [`${at}.self_attn.q_proj.weight`]]]));
    expect(formBytes({ bits: 4, block: 64 }, 128, 10)).toBe(640 + 40 + 20);
    expect(formBytes({ bits: 8, block: 0 }, 128, 10)).toBe(1280 + 40);
    expect(formBytes({ bits: 4, block: 32, scales: 'f16' }, 128, 10)).toBe(640 + 80);
  });
});

test('sensitivity is the KL of the whole model with that group changed', async () => {
  const small = await openSmallDecoder(demo);
  const { config, weights } = small;
  const { embed } = small.model!;
  const windows = [small.text.slice(0, 48), small.text.slice(48, 96)];
  const groupsOf = new Map([
    ['first', ['model.layers.0.mlp.down_proj.weight']],
    ['last', ['model.layers.3.self_attn.q_proj.weight', 'model.layers.3.self_attn.k_proj.weight']],
    ['none', ['model.layers.2.mlp.up_proj.weight']],
  ]);
  const coarse = (name: string): Tensor => {
    const source = weights.get(name)!;
    const step = name.includes('up_proj') ? 0 : 0.05;
    const floats = source.toFloats().map((value) => (step === 0 ? value : Math.trunc(value / step) * step));
    return Tensor.of('f32', source.shape, floats);
  };
  const quantized = new Map([...groupsOf.values()].flat().map((name) => [name, coarse(name)]));
  const found = await measureSensitivity({ config, weights, quantized, groups: groupsOf, embed, windows });
  const logits = async (changed: ReadonlyMap<string, Tensor>): Promise<Float32Array[]> => {
    const runner = await openModule(buildPlainDecoder(config, changed, 24, 64));
    const session = new DecoderSession({
      protocol: makeProtocol(config, plainContract, 64),
      graphs: new Map([[24, runner]]),
    });
    const rows: Float32Array[] = [];
    for (const window of windows) {
      session.reset();
      rows.push(...(await session.feed(window, 'all')));
    }
    await session.close();
    return rows;
  };
  const softmax = (row: Float32Array): Float64Array => {
    const most = Math.max(...row);
    const powers = Float64Array.from(row, (value) => Math.exp(value - most));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map((value) => value / sum);
  };
  const float = (await logits(weights)).map(softmax);
  for (const [group, members] of groupsOf) {
    const changed = new Map(weights);
    for (const name of members) changed.set(name, quantized.get(name)!);
    const got = (await logits(changed)).map(softmax);
    const divergences = float.map((p, t) => p.reduce((sum, each, i) => sum + each * Math.log(each / got[t]![i]!), 0));
    const mean = divergences.reduce((a, b) => a + b) / divergences.length;
    if (group === 'none') expect(found.get(group)).toBeLessThan(1e-9);
    else {
      expect(mean).toBeGreaterThan(1e-3);
      expect(found.get(group)! / mean).toBeCloseTo(1, 2);
    }
  }
});
