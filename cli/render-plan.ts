import { hasFloatActivations, isDynamic, type Recipe } from '../calibration/recipe.ts';
import { nameStages } from '../targets/qnn/plan-compile.ts';
import type { TargetName } from '../targets/target.ts';
import type { DryRun } from './jobs/compile-decoder.ts';
import type { ModelPlan } from './jobs/compile-onnx.ts';
import type { PlannedGraph, TargetSizes } from './jobs/plan-sizes.ts';

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

/** What `--dry-run` prints for a checkpoint. */
export function renderPlan({ sizes, recipe, parts = [] }: DryRun): string {
  const rows: [string, string][] = [
    ['parameters', sizes.parameters.toLocaleString('en-US')],
    ['scheme', describeRecipe(recipe) + (hasFloatActivations(recipe) ? '' : `, ${recipe.cache}-bit cache`)],
    ['graphs (tokens x cache)', sizes.graphs.map(({ tokens, cache }) => `${tokens}x${cache}`).join(', ')],
    ...sizes.graphs.map((graph): [string, string] => [`  ${graph.name}`, describeCache(graph)]),
    ...Object.entries(sizes.targets).map(([name, target]): [string, string] => [
      name,
      `weights ${formatBytes(target.weightBytes)} (head ${formatBytes(target.headBytes)}), ` +
        `embedding ${formatBytes(target.embeddingBytes)}, key/value cache ${describeCaches(target)}`,
    ]),
    [
      'memory to compile',
      `about ${formatBytes(sizes.memory.process)}` +
        (sizes.memory.qnnCompiler ? `, and ${formatBytes(sizes.memory.qnnCompiler)} in the HTP compiler` : ''),
    ],
    ...parts.map((part, index): [string, string] => [
      `HTP part ${index + 1} of ${parts.length}`,
      `${nameStages(part.stages)}: ${formatBytes(part.bytes)} of weights in ${part.graphs} graph${part.graphs === 1 ? '' : 's'}, ` +
        `about ${formatBytes(part.peakBytes)} and ${part.cpuSeconds.toFixed(0)} CPU seconds to compile`,
    ]),
  ];
  return layRows(rows);
}

/** What `--dry-run` prints for an ONNX model. */
export function renderModelPlan({
  inputs,
  outputs,
  nodes,
  weights,
  weightBytes,
  targets,
  recipe,
  remarks,
}: ModelPlan): string {
  return layRows([
    ...inputs.map(({ name, type }): [string, string] => ['input', `${name} ${type}`]),
    ...outputs.map(({ name, type }): [string, string] => ['output', `${name} ${type}`]),
    ['nodes, simplified', nodes.toLocaleString('en-US')],
    ['weights', `${weights.toLocaleString('en-US')}, ${formatBytes(weightBytes)} before quantization`],
    ['scheme', describeRecipe(recipe)],
    ['targets', targets.join(', ')],
    ...remarks.map((remark): [string, string] => ['remark', remark]),
  ]);
}

/** What a run of a graph reads and writes; targets of one number format are named together. */
function describeCache({ pastBytes, newBytes }: PlannedGraph): string {
  const lines = new Map<string, TargetName[]>();
  for (const [name, past] of Object.entries(pastBytes) as [TargetName, number][]) {
    const text = `keys and values ${formatBytes(past)} in, ${formatBytes(newBytes[name]!)} out`;
    lines.set(text, [...(lines.get(text) ?? []), name]);
  }
  if (lines.size === 1) return [...lines.keys()][0]!;
  return [...lines].map(([text, names]) => `${names.join(', ')}: ${text}`).join('; ');
}

function describeCaches({ cacheBytes }: TargetSizes): string {
  const sizes = Object.entries(cacheBytes);
  if (sizes.length === 1) return formatBytes(sizes[0]![1]);
  return sizes.map(([cache, bytes]) => `${formatBytes(bytes)} at ${cache}`).join(', ');
}

function describeRecipe({ scheme, weight, activation }: Recipe): string {
  if (scheme === 'fp16') return 'fp16';
  const blocks = weight.scales === 'f16' ? 'blocks of' : 'LPBQ block';
  const form = weight.block > 0 ? `${blocks} ${weight.block}` : 'per channel';
  if (isDynamic({ scheme })) return `${scheme}: ${weight.bits}-bit weights ${form}, float activations`;
  return `${scheme}: ${weight.bits}-bit weights ${form}, ${activation}-bit activations`;
}

function layRows(rows: readonly (readonly [string, string])[]): string {
  return `${rows.map(([name, value]) => `${name.padEnd(24)} ${value}`).join('\n')}\n`;
}
