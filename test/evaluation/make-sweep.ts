import { markFront } from '../../evaluation/sweep/choose-points.ts';
import type { SweepPoint, SweepReport } from '../../evaluation/sweep/sweep-report.ts';
import { judgeEstimates } from '../../targets/estimate-speed.ts';

interface PointOptions {
  readonly soc?: string;
  readonly scheme?: string;
  readonly tokens?: number;
  readonly cache?: number;
  readonly memory: number;
  readonly seconds?: number;
  readonly ratio?: number;
}

/** A point with the figures that choices are made by. */
export function makePoint(options: PointOptions): Omit<SweepPoint, 'front'> {
  const { soc = 'SM8750', scheme = 'w4a16', tokens = 128, cache = 1024, memory, seconds, ratio } = options;
  const estimate = { tokensPerSecond: 100 / (seconds ?? 1), low: 50, high: 150, bound: 'memory' as const };
  return {
    id: `qnn ${soc} ${scheme} ${tokens}x${cache}`,
    target: 'qnn',
    soc,
    arch: 'v79',
    scheme,
    tokens,
    cache,
    plan: {
      weightBytes: memory / 2,
      embeddingBytes: memory / 8,
      copies: 1,
      artifactBytes: memory * 0.75,
      cacheBytes: memory / 8,
      arenaBytes: memory / 16,
      ioBytes: memory / 16,
      memoryBytes: memory,
      parts: 1,
      limits: [],
      ...(seconds === undefined ? {} : { seconds, prefill: estimate, decode: estimate }),
      timeline: { prefill: [1, 5, 3, 8, 2].map((share) => (share * memory) / 100), decode: [1, 2, 1] },
    },
    ...(ratio === undefined
      ? {}
      : {
          quality: {
            perplexity: 20 * ratio,
            floatPerplexity: 20,
            ratio,
            divergence: 0.01,
            topAgreement: 0.9,
            predictions: 2047,
            slides: 3,
            seconds: 5,
          },
        }),
  };
}

/** A report of a few points on two SoCs, compiled and evaluated. */
export function makeSweep(): SweepReport {
  const points = ['SM8650', 'SM8750'].flatMap((soc) =>
    ['w4a16', 'w8a8'].flatMap((scheme) =>
      [512, 1024, 2048].map((cache) =>
        makePoint({
          soc,
          scheme,
          cache,
          memory: (scheme === 'w8a8' ? 2e8 : 1e8) + cache * 2e4,
          seconds: 1 + cache / 4096 + (soc === 'SM8650' ? 0.3 : 0) + (scheme === 'w8a8' ? 0.5 : 0),
          ratio: 1 + 100 / cache + (scheme === 'w8a8' ? 0 : 0.05),
        }),
      ),
    ),
  );
  return {
    format: 1,
    kind: 'sweep',
    npuc: '0.1.0',
    source: 'demo <b>bold</b>',
    parameters: 2_900_000,
    points: markFront(points),
    stream: { tokens: 2048, sinks: 4, positions: 'cache' },
    published: judgeEstimates(),
    budget: { budget: 'memory<=1GiB', best: points[5]!.id, fitting: 12 },
    command: 'npuc sweep demo --cache 512,1024,2048',
  };
}
