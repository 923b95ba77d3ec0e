import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import type { Tensors } from '../../compiler/runtime/runner.ts';
import type { ModelReport } from '../../evaluation/model-report.ts';
import { hasMaterial, materialPath } from '../material.ts';
import { toolchain } from '../targets/qnn/toolchain-or-skip.ts';
import { runNpuc } from './run-npuc.ts';

/** What bench/material-models.mjs says of a model. */
interface BenchModel {
  readonly path: string;
  readonly bind: readonly string[];
  calibrate(): Promise<Tensors[]> | Tensors[];
  evaluate(): Promise<Tensors[]> | Tensors[];
}

interface Figure {
  readonly worst?: number;
}

/** bench/results/onnx-vs-ort.yaml: figures of ONNX Runtime's own quantizer, and digests of what they were measured on. */
interface Results {
  readonly models: Readonly<
    Record<
      string,
      {
        readonly sha256: string;
        readonly calibrate: string;
        readonly evaluate: string;
        readonly schemes: Readonly<Record<string, { readonly ort: Readonly<Record<string, Peer>> }>>;
      }
    >
  >;
}

interface Peer {
  readonly cpu?: Figure;
  readonly htp?: Figure;
}

const bench = new URL('../../bench/', import.meta.url);
const results = parse(readFileSync(new URL('results/onnx-vs-ort.yaml', bench), 'utf8')) as Results;
const digest = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-onnx-vs-ort-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

describe.skipIf(!hasMaterial)("against ONNX Runtime's own quantizer, on the same samples", { timeout: 240_000 }, () => {
  test.each(
    ['mnist_8', 'ppocr-cls', 'silero-vad'].flatMap((name) => [[name, 'w8a8'] as const, [name, 'w8a16'] as const]),
  )('%s at %s keeps at least as much of its worst output', async (name, scheme) => {
    const { MODELS, writeNpz } = (await import(new URL('material-models.mjs', bench).href)) as {
      MODELS: Readonly<Record<string, BenchModel>>;
      writeNpz(path: string, feeds: readonly Tensors[]): void;
    };
    const model = MODELS[name]!;
    const known = results.models[name]!;
    const source = materialPath('onnx', model.path);
    expect(digest(source)).toBe(known.sha256);
    const flags: string[] = model.bind.flatMap((each) => ['--bind', each]);
    for (const kind of ['calibrate', 'evaluate'] as const) {
      const path = join(work, `${name}-${kind}.npz`);
      writeNpz(path, await model[kind]());
      expect(digest(path), kind).toBe(known[kind]);
      flags.push(`--${kind}`, path);
    }
    const [target, engine] = toolchain ? (['qnn', 'htp'] as const) : (['onnx', 'cpu'] as const);
    const peers = Object.values(known.schemes[scheme]!.ort).flatMap((peer) => peer[engine]?.worst ?? []);
    expect(peers.length).toBeGreaterThan(0);
    const args = ['compile', source, '--scheme', scheme, '--soc', 'SM8750', '--target', target, ...flags];
    const { code, stderr } = await runNpuc([...args, '--quiet', '--out', join(work, `${name}-${scheme}`)]);
    expect(code, stderr).toBe(0);
    const report = JSON.parse(readFileSync(join(work, `${name}-${scheme}`, 'report.json'), 'utf8')) as ModelReport;
    const worst = Math.min(...report.targets[target]!.outputs.map(({ sqnr }) => Number(sqnr)));
    expect(worst).toBeGreaterThanOrEqual(Math.max(...peers));
  });
});
