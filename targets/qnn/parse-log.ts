import { explainQnnCode } from '../../compiler/runtime/qnn-codes.ts';

/** A node that the QNN plugin does not take, with the plugin's own reason. */
export interface Refusal {
  /** The node's name in the model that was compiled. */
  readonly node: string;
  readonly op: string;
  readonly reason: string;
}

const BLOCK = 'Validation FAILED for ';
const TARGET = /nodes in \S+ \((.+?)\) :$/;
const NODE = /^\tOperator type: (.*?) Node name: (.*?) Node index: \d+$/;
const REASON = '\tREASON : ';
const BACKEND = /backendValidateOpConfig\(\) failed for node `(.*)` of type `.*` with error code (\d+)/;
const LISTED = /\{ name: (.*?), type: (.*?) \}/g;
/** Starts the line that lists all refused nodes of a graph. */
export const REFUSAL_SUMMARY = 'Unsupported nodes in QNN EP: ';
const CULPRIT = /<E> "(.+)" generated: (.+)$/;
const COMPLAINT = /<E> (.+)$/;
/** Follows what the backend's validator complained about. */
const JUDGED = /validateNativeOps (.+):\S+:\w+ htp op validator failed/;
const RANK = /has incorrect Rank (\d+)/;
const TILES = /not sufficiently tiled to fit in TCM\. Requires (\d+) bytes/;
/** Written in every log, or saying again that something failed. */
const NOISE =
  /unexpected GraphHtpSettings|skipping post-prepare|graph prepare failed|Failed to (append|add|construct|apply|validate|finalize)/;

/**
 * Finds the refused nodes in the plugin's verbose log. The plugin validates node units (an operator with the quantize
 * and dequantize nodes around it) and writes for each refused one
 *
 *     ... LogNodeSupport] Validation FAILED for 4 nodes in OrtNodeUnit (MatMul) :
 *     <tab>Operator type: DequantizeLinear Node name: x_DQ Node index: 1
 *     <tab>Operator type: MatMul Node name: mm Node index: 3
 *     <tab>REASON : ...
 *
 * The name given is that of the operator, not of the nodes around it. A unit is judged more than once (alone, and again
 * after the layout pass): the last reason stands. Nodes that only the closing summary names have no reason.
 */
export function parseRefusals(log: string): Refusal[] {
  const found = new Map<string, Refusal>();
  const summary = new Map<string, Refusal>();
  const backendCodes = new Map<string, string>();
  const complaints = new Map<string, string>();
  let complaint: string | undefined;
  let target: string | undefined;
  let nodes: { op: string; name: string }[] = [];
  for (const line of log.split('\n')) {
    const backend = BACKEND.exec(line);
    if (backend) backendCodes.set(backend[1]!, backend[2]!);
    const judged = JUDGED.exec(line);
    if (judged) {
      if (complaint !== undefined) complaints.set(judged[1]!, complaint);
      complaint = undefined;
    } else complaint = COMPLAINT.exec(line)?.[1] ?? complaint;
    if (line.includes(REFUSAL_SUMMARY)) {
      summary.clear();
      for (const [, node = '', op = ''] of line.matchAll(LISTED))
        summary.set(node, { node, op, reason: 'no reason given' });
    }
    if (line.includes(BLOCK)) {
      target = TARGET.exec(line)?.[1];
      nodes = [];
      continue;
    }
    if (target === undefined) continue;
    const listed = NODE.exec(line);
    if (listed) {
      nodes.push({ op: listed[1]!, name: listed[2]! });
    } else if (line.startsWith(REASON)) {
      const node = nodes.find((candidate) => candidate.op === target) ?? nodes[0];
      const name = node?.name || `an unnamed ${target}`;
      const text = tidyReason(line.slice(REASON.length));
      const code = backendCodes.get(name);
      const said = complaints.get(name);
      const reason =
        text === 'Failed to add node.' && code
          ? [
              explainQnnCode(Number(code)) ?? `the backend refuses this form (QNN error ${code})`,
              said && plainWords(said),
            ]
              .filter(Boolean)
              .join(': ')
          : text;
      found.set(name, { node: name, op: target, reason });
      target = undefined;
    }
  }
  // The summary is the final verdict; without one nothing at all was taken, and every refusal counts.
  if (summary.size === 0) return [...found.values()];
  return [...summary.values()].map((refusal) => found.get(refusal.node) ?? refusal);
}

/** The plugin appends which node it will not take, which is said already. */
function tidyReason(reason: string): string {
  return reason
    .replace(/^QNN EP: /, '')
    .replace(/(?<=\.)\w+ node `.*` will not be assigned to QNN EP\.$/, '')
    .trim();
}

/** What the backend complains about, in the user's terms where that is known. */
function plainWords(complaint: string): string {
  const rank = RANK.exec(complaint);
  if (rank) return `a tensor of rank ${rank[1]}, fewer dimensions are taken here`;
  const tiles = TILES.exec(complaint);
  if (tiles) {
    const size = (Number(tiles[1]) / 2 ** 20).toFixed(1);
    return `it needs ${size} MiB of on-chip memory (VTCM) at once: its rows are too long to be cut into tiles`;
  }
  return complaint.replace(/^\[\d+\] /, '').replace(/\.$/, '');
}

/**
 * Finds what the graph compiler itself could not do, in a verbose log: operators that it could not place, in lines such as
 * `<E> "node" generated: could not create op`, else its other complaints.
 */
export function parseCompilerErrors(log: string): string[] {
  const found = new Set<string>();
  const others = new Set<string>();
  for (const line of log.split('\n')) {
    const culprit = CULPRIT.exec(line);
    if (culprit) found.add(`${culprit[1]}: ${plainWords(culprit[2]!)}`);
    const other = COMPLAINT.exec(line)?.[1];
    if (other !== undefined && !NOISE.test(other)) others.add(plainWords(other));
  }
  return [...(found.size > 0 ? found : others)];
}
