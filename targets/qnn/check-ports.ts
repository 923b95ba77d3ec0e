import { NpucError } from '../../compiler/errors.ts';
import type { PortInfo } from '../../compiler/runtime/runner.ts';
import type { ContextGraph } from './read-context.ts';

/** Types that the vendor's compiler narrows at a graph's ports, where ONNX Runtime then converts. */
const NARROWED: Readonly<Record<string, string>> = { i64: 'i32' };

/** The vendor's compiler has no scalars: it gives them one axis of one element. */
function sameShape(found: readonly number[], wanted: PortInfo['shape']): boolean {
  return found.join() === (wanted.length === 0 ? '1' : wanted.join());
}

/**
 * Checks a compiled graph against the model that it was compiled from: every output, no port that the model does not have,
 * and each with the model's type and shape. An input that nothing reads is not in the binary.
 * @throws QN013
 */
export function checkGraphPorts(
  graph: ContextGraph,
  model: { readonly inputs: readonly PortInfo[]; readonly outputs: readonly PortInfo[] },
  where: string,
): void {
  const problems: string[] = [];
  for (const [side, found, wanted] of [
    ['input', graph.inputs, model.inputs],
    ['output', graph.outputs, model.outputs],
  ] as const) {
    const ports = new Map(wanted.map((port) => [port.name, port]));
    for (const { name, dtype, shape } of found) {
      const port = ports.get(name);
      if (!port) problems.push(`${side} ${name} is not in the model`);
      else if ((dtype !== port.dtype && dtype !== NARROWED[port.dtype]) || !sameShape(shape, port.shape))
        problems.push(`${side} ${name} is ${dtype}[${shape}], the model has ${port.dtype}[${port.shape}]`);
    }
    if (side === 'input') continue;
    const names = new Set(found.map(({ name }) => name));
    for (const { name } of wanted) if (!names.has(name)) problems.push(`output ${name} is missing`);
  }
  if (problems.length === 0) return;
  throw new NpucError('QN013', {
    message: [`graph ${graph.name} differs from its model:`, ...problems.map((line) => `  ${line}`)].join('\n'),
    where,
    exitCode: 70,
  });
}
