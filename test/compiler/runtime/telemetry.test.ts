import { mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { NativeHost } from '../../../compiler/runtime/ort-native.ts';
import { demo, runNpuc } from '../../cli/run-npuc.ts';
import { toolchain } from '../../targets/qnn/toolchain-or-skip.ts';

let work: string;
let home: string;
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'npuc-telemetry-'));
  home = join(work, 'home');
  mkdirSync(home);
});
afterAll(() => {
  rmSync(work, { recursive: true, force: true });
});

test("ONNX Runtime's package leaves nothing in the user's home", async () => {
  const env: Record<string, string> = { HOME: home, ORT_DISABLE_TELEMETRY: '', XDG_CACHE_HOME: '' };
  const { code, stderr } = await runNpuc(['diff', demo, demo, '--tokens', '16', '--window', '8', '--quiet'], { env });
  expect(stderr).toBe('');
  expect(code).toBe(0);
  expect(readdirSync(home, { recursive: true })).toEqual([]);
});

test.skipIf(!toolchain)("the toolchain's library leaves nothing in the user's home", async () => {
  const before = { HOME: process.env.HOME, ORT_DISABLE_TELEMETRY: process.env.ORT_DISABLE_TELEMETRY };
  process.env.HOME = home;
  delete process.env.ORT_DISABLE_TELEMETRY;
  try {
    const host = await NativeHost.start(toolchain!);
    await host.close();
  } finally {
    Object.assign(process.env, before);
    if (before.ORT_DISABLE_TELEMETRY === undefined) delete process.env.ORT_DISABLE_TELEMETRY;
  }
  expect(readdirSync(home, { recursive: true })).toEqual([]);
});
