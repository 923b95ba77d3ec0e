import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');

/** Stages from the bottom up: a file may import its own stage and those below (DESIGN 2). */
const STAGES: readonly (readonly string[])[] = [
  ['compiler/errors.ts', 'compiler/cache.ts', 'compiler/progress.ts', 'compiler/ir', 'compiler/kernels'],
  ['compiler/ops'],
  ['compiler/import', 'compiler/export', 'compiler/runtime', 'compiler', 'passes', 'calibration'],
  ['targets'],
  ['evaluation'],
  ['cli'],
];

function stageOf(path: string): number {
  let best = -1;
  let length = -1;
  STAGES.forEach((folders, stage) => {
    for (const folder of folders) {
      if ((path === folder || path.startsWith(`${folder}/`)) && folder.length > length) {
        best = stage;
        length = folder.length;
      }
    }
  });
  return best;
}

function sources(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .map((path) => join(folder, path))
    .filter((path) => path.endsWith('.ts') && !path.includes('kernels/assembly'));
}

const files = ['compiler', 'passes', 'calibration', 'targets', 'evaluation', 'cli'].flatMap(sources);

test('imports go down the stages, never up', () => {
  const upward: string[] = [];
  for (const file of files) {
    const text = readFileSync(join(root, file), 'utf8');
    for (const match of text.matchAll(/from '(\.[^']+)'|import\('(\.[^']+)'\)/g)) {
      const target = relative(root, join(root, dirname(file), match[1] ?? match[2]!));
      if (stageOf(target) > stageOf(file)) upward.push(`${file} imports ${target}`);
    }
  }
  expect(upward).toEqual([]);
});

test('files keep to one subject: at most 600 lines', () => {
  const long = files
    .map((file) => ({ file, lines: readFileSync(join(root, file), 'utf8').split('\n').length }))
    // The TFLite enumerations are a table of the format, one name a line.
    .filter(({ file, lines }) => lines > 600 && !file.endsWith('schema-enums.ts') && !file.endsWith('wasm-bytes.ts'));
  expect(long).toEqual([]);
});

test('quantization never rounds half up', () => {
  const rounding = files.filter((file) => {
    const quantizes = /^(calibration|compiler\/(export|ir|ops|kernels)|targets\/(onnx|qnn|tflite))\//.test(file);
    return quantizes && /\bMath\.round\b/.test(readFileSync(join(root, file), 'utf8'));
  });
  expect(rounding).toEqual([]);
});
