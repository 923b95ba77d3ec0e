import type { Scheme } from '../../calibration/recipe.ts';
import type { Encoding } from '../../compiler/ir/encoding.ts';
import type { Module, Node, Value } from '../../compiler/ir/graph.ts';
import { isFloatValue, knownRank, knownShape } from '../../compiler/value-facts.ts';
import { HTP_FEATURES, type Soc, socSupports } from '../socs.ts';
import {
  HTP_RULES,
  type HtpRule,
  type Mend,
  type NodeFacts,
  type NodeWidth,
  REPLACED_OPS,
  TAKEN_CONTRIB_OPS,
  TAKEN_OPS,
  type Verdict,
} from './rules.ts';

export interface FindingNode {
  /** The node in the graph that was checked. */
  readonly name: string;
  readonly op: string;
  /** The user's own nodes that it came from. */
  readonly from: readonly string[];
}

/** One thing that a SoC cannot take, or computes wrongly, and every node that it is true of. */
export interface Finding {
  readonly code: string;
  readonly verdict: Verdict;
  readonly reason: string;
  readonly nodes: readonly FindingNode[];
  readonly mend?: Mend;
  readonly measured: string;
}

export interface CheckOptions {
  /** What the graph will be quantized to, where it has no encodings of its own. */
  readonly scheme: Scheme;
}

/** The most axes that a tensor may have on HTP. */
const MOST_AXES = 5;
const MOVES: ReadonlySet<string> = new Set(['Reshape', 'Transpose']);

/**
 * The linter: every node of a module's first graph that a SoC's HTP refuses, computes wrongly or weakly, by the rules that
 * were measured on the vendor's simulator (targets/qnn/rules.ts), grouped by reason, in the order of their codes. A graph
 * without encodings is judged at the widths that the scheme gives it. Nothing of the vendor's is needed.
 */
export function checkGraph(module: Module, soc: Soc, { scheme }: CheckOptions): Finding[] {
  const graph = module.graph();
  const isQuantized = [...graph.values].some(({ encoding }) => encoding !== undefined);
  const assumed: NodeWidth = scheme === 'fp16' ? 'fp16' : scheme === 'w8a8' ? 'u8' : 'u16';
  const findings = new Map<string, { rule: Omit<HtpRule, 'ops'>; nodes: FindingNode[] }>();
  const report = (rule: Omit<HtpRule, 'ops'>, node: Node): void => {
    const key = JSON.stringify([rule.code, rule.reason, rule.mend]);
    const found = findings.get(key) ?? { rule, nodes: [] };
    findings.set(key, found);
    found.nodes.push({ name: node.name, op: node.op, from: node.from });
  };
  for (const node of graph.nodes) {
    const width = isQuantized ? widthOf(node) : assumed;
    const facts: NodeFacts = {
      width,
      isQuantized,
      opset: module.opsets.get('') ?? 0,
      arch: soc.arch,
      encodingOf: (value: Value | undefined): Encoding | undefined => value?.encoding,
    };
    const general = checkAnyNode(node, facts, soc);
    if (general) {
      report(general, node);
      continue;
    }
    for (const rule of HTP_RULES) if (holds(rule, node, facts)) report(rule, node);
  }
  return [...findings.values()]
    .map(({ rule: { code, verdict, reason, mend, measured }, nodes }) => ({
      code,
      verdict,
      reason,
      nodes,
      ...(mend ? { mend } : {}),
      measured,
    }))
    .sort((a, b) => (a.code < b.code ? -1 : a.code > b.code ? 1 : 0));
}

/** Whether a finding keeps a model from the NPU: nothing mends it, and it is worse than weak. */
export function isFatal({ verdict, mend }: Finding): boolean {
  return verdict !== 'weak' && mend === undefined;
}

function holds(rule: HtpRule, node: Node, facts: NodeFacts): boolean {
  if (node.domain !== '' || !rule.ops.includes(node.op)) return false;
  if (rule.widths && !rule.widths.includes(facts.width)) return false;
  if (rule.archs && !rule.archs(facts.arch)) return false;
  return rule.matches?.(node, facts) ?? true;
}

/** The width that a node of a quantized graph is computed at: that of its first output, or of its first input. */
function widthOf(node: Node): NodeWidth {
  const encoding = [...node.outputs, ...node.inputs].find((value) => value?.encoding)?.encoding;
  if (!encoding) return 'fp16';
  return encoding.dtype.endsWith('16') ? 'u16' : 'u8';
}

/** What holds for nodes of any kind. */
function checkAnyNode(node: Node, facts: NodeFacts, soc: Soc): Omit<HtpRule, 'ops'> | undefined {
  const name = node.domain ? `${node.domain}::${node.op}` : node.op;
  if (node.subgraphs.length > 0)
    return {
      code: 'HTP001',
      verdict: 'refused',
      reason: `${name}: there is no control flow on HTP`,
      measured: 'the plugin has no builder for If, Loop and Scan',
    };
  const taken = node.domain === '' ? TAKEN_OPS : node.domain === 'com.microsoft' ? TAKEN_CONTRIB_OPS : undefined;
  if (!taken?.has(node.op)) {
    const mend = node.domain === '' ? REPLACED_OPS[node.op] : undefined;
    return {
      code: 'HTP002',
      verdict: 'refused',
      reason: `HTP has no ${name}`,
      ...(mend ? { mend: { kind: 'pass', pass: mend } as const } : {}),
      measured: 'operators of this type are not supported by the plugin',
    };
  }
  const values = [...node.inputs, ...node.outputs];
  const deep = values.find((value) => (knownRank(value) ?? 0) > MOST_AXES);
  if (deep)
    return {
      code: 'HTP003',
      verdict: 'refused',
      reason: `tensors have at most ${MOST_AXES} axes`,
      // Models have six axes where they shuffle pixels.
      ...(MOVES.has(node.op) ? { mend: { kind: 'pass', pass: 'fuse-depth-to-space' } as const } : {}),
      measured: 'Add and Transpose of rank 6 refused, of rank 5 taken',
    };
  const open = values.find((value) => knownShape(value)?.some((dim) => typeof dim !== 'number'));
  if (open)
    return {
      code: 'HTP004',
      verdict: 'refused',
      reason: 'shapes must be fixed',
      mend: { kind: 'flag', flag: '--bind' },
      measured: 'the plugin takes fixed shapes only',
    };
  if (facts.width === 'fp16' && !socSupports(soc, 'fp16') && computesReals(node))
    return {
      code: 'HTP005',
      verdict: 'refused',
      reason: `v${soc.arch} does not compute in half floats`,
      mend: { kind: 'flag', flag: '--scheme w8a16' },
      measured: HTP_FEATURES.fp16.measured,
    };
  return undefined;
}

function computesReals(node: Node): boolean {
  return node.outputs.some((value) => value && isFloatValue(value));
}

/** The passes that findings name, each once. */
export function passesOf(findings: readonly Finding[]): string[] {
  return [...new Set(findings.flatMap(({ mend }) => (mend?.kind === 'pass' ? [mend.pass] : [])))];
}
