import type { ManifestNpu, NpuSignature } from '../targets/tflite/npu/compile-npu.ts';
import type { NpuReport, NpuRun } from './compare-npu.ts';
import { formatBytes, formatCount, formatDecibels } from './format-figures.ts';

/** Reasons that are shown; a graph can have one for each of hundreds of operators. */
const REASONS = 4;

/**
 * What a vendor's plugin took, in lines: a line for the file, and one for every group of operators that stay on the CPU.
 *
 *     qualcomm SM8750: prefill_32 187 of 187 operators in 1 partition; decode 222 of 222 operators in 1 partition
 */
export function describeClaims(npu: ManifestNpu): string[] {
  return [`${nameNpu(npu)}: ${npu.signatures.map(describeSignature).join('; ')}`, ...describeFallback(npu)];
}

/** The same with how exactly the vendor's engine computes: `...; prefill_32 41.3 dB from LiteRT (worst: kv_slice_v_4)`. */
export function describeNpu(npu: NpuReport): string[] {
  const [first = '', ...rest] = describeClaims(npu);
  const size = npu.file === undefined ? 'claims only, nothing compiled' : formatBytes(npu.bytes);
  const engine =
    npu.runs.length === 0
      ? []
      : [
          `${nameNpu(npu)} in ${npu.engine}, against LiteRT on the same inputs: ${npu.runs.map(describeRun).join('; ')}`,
        ];
  return [`${first} (${size})`, ...rest, ...engine, ...npu.notes.map((note) => `${nameNpu(npu)}: ${note}`)];
}

function nameNpu({ vendor, soc, shard }: ManifestNpu): string {
  return `${vendor} ${soc}${shard === undefined ? '' : ` shard ${shard}`}`;
}

function describeSignature({ name, operators, claimed, partitions }: NpuSignature): string {
  const parts = `${formatCount(partitions)} partition${partitions === 1 ? '' : 's'}`;
  return `${name} ${formatCount(claimed)} of ${formatCount(operators)} operators in ${parts}`;
}

/** Operators of one kind and reason are one line; the shapes that a reason names differ, the types do not. */
function describeFallback(npu: ManifestNpu): string[] {
  const groups = new Map<string, { count: number; first: string; reason: string; op: string }>();
  for (const { op, output, reason } of npu.signatures.flatMap(({ fallback }) => fallback)) {
    const key = `${op} ${reason.replaceAll(/\[[\d,]*\]/g, '')}`;
    const group = groups.get(key) ?? { count: 0, first: output, reason, op };
    group.count++;
    groups.set(key, group);
  }
  const lines = [...groups.values()].map(
    ({ count, first, reason, op }) =>
      `${nameNpu(npu)} leaves ${formatCount(count)} ${op} to the CPU (${first}${count > 1 ? ' and others' : ''}): ${reason}`,
  );
  const more = lines.length - REASONS;
  return more > 0 ? [...lines.slice(0, REASONS), `and ${more} more kinds in report.json`] : lines;
}

function describeRun({ signature, outputs, sqnr, worst }: NpuRun): string {
  const plain = (name: string): string => name.slice(name.lastIndexOf('/') + 1).replace(/\.float$/, '');
  const logits = outputs.find(({ name }) => plain(name) === 'logits');
  const rest = logits && outputs.length > 1 ? `, logits ${formatDecibels(logits.sqnr)}` : '';
  return `${signature} ${formatDecibels(sqnr)} at worst (${plain(worst)})${rest}`;
}
