import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { LitertLmAgreement } from '../../cli/jobs/bundle-litertlm.ts';
import { runNpuc } from '../cli/run-npuc.ts';
import { hasSmolLM2, smolLM2Path } from '../smollm2.ts';
import { litertLm } from '../targets/litert-lm-or-skip.ts';

const MINUTE = 60_000;

let work: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-smollm2-lm-'));
});
afterAll(() => rmSync(work, { recursive: true, force: true }));

describe.skipIf(!hasSmolLM2 || !litertLm)('LiteRT-LM runs SmolLM2', () => {
  test(
    'w8a8: 64 greedy tokens and the chat template are ours',
    async () => {
      const build = join(work, 'build');
      const flags = ['--target', 'tflite', '--profile', 'litert-lm', '--scheme', 'w8a8', '--tokens', '32'];
      const quick = ['--cache', '128', '--calibration-windows', '2', '--evaluate', 'none', '--quiet'];
      const compiled = await runNpuc(['compile', smolLM2Path(), ...flags, ...quick, '--out', build]);
      expect(compiled.code, compiled.stderr).toBe(0);
      const out = join(work, 'model.litertlm');
      const verify = ['--verify', '--prompt', 'The capital of France is', '--max-tokens', '64', '--json', '--quiet'];
      const { code, stdout, stderr } = await runNpuc(['bundle', 'litertlm', build, '--out', out, ...verify]);
      expect(code, stderr).toBe(0);
      const { ids, native, js } = (JSON.parse(stdout) as { verified: LitertLmAgreement }).verified;
      expect(ids.length).toBe(64);
      expect(native).toMatchObject({ differing: [], gap: 0 });
      console.log(
        `LiteRT.js: ${ids.length - js.differing.length} of ${ids.length} tokens, the others within ${js.gap}`,
      );
      expect(js.differing.length).toBeLessThan(16);
    },
    20 * MINUTE,
  );
});
