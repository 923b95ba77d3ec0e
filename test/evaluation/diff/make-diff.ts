import type { BuildView, ViewWeight } from '../../../evaluation/diff/build-view.ts';
import { type BuildDiff, compareBuilds } from '../../../evaluation/diff/compare-builds.ts';

/** A name as hostile models have them. */
export const HOSTILE = 'layers.1.<script>alert("x")</script>';

const STEPS = ['q_proj', 'scores', 'o_proj', 'mlp_product', 'residual'];

function weight(name: string, shape: readonly number[], change: (value: number, i: number) => number): ViewWeight {
  const size = shape.reduce((a, b) => a * b, 1);
  const data = Float32Array.from({ length: size }, (_, i) => change(Math.sin(i * 1.7) * 0.1, i));
  return { name, form: 'i8 per channel', scale: 0.001, read: () => ({ shape, data }) };
}

/** A build of a made-up decoder of so many layers, `worse` dB worse in its second. */
export function makeView(title: string, worse: number, layers = 3): BuildView {
  const names = Array.from({ length: layers }, (_, layer) => STEPS.map((step) => `layers.${layer}.${step}`)).flat();
  return {
    title,
    kind: 'build',
    facts: [
      ['scheme', worse > 0 ? 'w4a16' : 'w8a16'],
      ['soc', 'SM8750'],
    ],
    ops: new Map([
      ['MatMul', 7 * layers],
      ['Add', 2 * layers + (worse > 0 ? 1 : 0)],
    ]),
    values: [...names, HOSTILE].map((name, i) => {
      const sqnr = 40 - (i % 7) - (name.startsWith('layers.1.') ? worse : 0);
      return {
        name,
        from: [`model.${name}`],
        sqnr,
        noiseAdded: 10 ** (-sqnr / 10),
        encoding: { dtype: 'u16', scale: 0.001 * (1 + worse), zero: 32768 },
      };
    }),
    weights: names
      .filter((name) => name.endsWith('proj'))
      .map((name) =>
        weight(`model.${name}.weight`, [8, 16], (value) => (worse > 0 ? Number(value.toFixed(2)) : value)),
      ),
    files: [{ path: 'weights.data', bytes: worse > 0 ? 600_000 : 1_000_000 }],
    quality: [
      { name: 'kl', value: 0.01 + worse / 100, better: 'lower' },
      { name: 'top1', value: 0.95 - worse / 100, better: 'higher' },
    ],
  };
}

export function makeDiff(layers = 3): BuildDiff {
  return compareBuilds(makeView('old <b>build</b>', 0, layers), makeView('new', 6, layers));
}
