import type { DryRun } from './jobs/compile-decoder.ts';

/** Bytes for people. */
export function formatBytes(bytes: number): string {
  if (bytes < 1024) return `${bytes} B`;
  const units = ['KiB', 'MiB', 'GiB'];
  let value = bytes;
  let unit = -1;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value.toFixed(value < 10 ? 2 : 1)} ${units[unit]}`;
}

/** What `--dry-run` prints. */
export function renderPlan({ sizes, recipe }: DryRun): string {
  const form = recipe.weight.block > 0 ? `LPBQ block ${recipe.weight.block}` : 'per channel';
  const rows: [string, string][] = [
    ['parameters', sizes.parameters.toLocaleString('en-US')],
    [
      'scheme',
      recipe.scheme === 'fp16'
        ? 'fp16'
        : `${recipe.scheme}: ${recipe.weight.bits}-bit weights ${form}, ${recipe.activation}-bit activations, ${recipe.cache}-bit cache`,
    ],
    ['graphs (tokens x cache)', sizes.graphs.join(', ')],
    ...Object.entries(sizes.targets).map(([name, target]): [string, string] => [
      name,
      `weights ${formatBytes(target.weightBytes)} (head ${formatBytes(target.headBytes)}), ` +
        `embedding ${formatBytes(target.embeddingBytes)}, key/value cache ${formatBytes(target.cacheBytes)}`,
    ]),
    [
      'memory to compile',
      `about ${formatBytes(sizes.memory.process)}` +
        (sizes.memory.qnnCompiler ? `, and ${formatBytes(sizes.memory.qnnCompiler)} in the HTP compiler` : ''),
    ],
  ];
  return `${rows.map(([name, value]) => `${name.padEnd(24)} ${value}`).join('\n')}\n`;
}
