import { isFloat } from './dtype.ts';
import { type Encoding, encodingForm, integerRange, sameEncoding } from './encoding.ts';
import type { Graph, Module, Shape, Value } from './graph.ts';
import { printType } from './text-print.ts';
import type { Report } from './verify.ts';

/** Encodings and payloads of a graph's values. */
export function checkEncodings(graph: Graph, report: Report): void {
  for (const value of graph.values) {
    const { encoding, payload, type } = value;
    const say = (message: string): void => report(value.name, message);
    if (payload) checkPayload(value, say);
    if (!encoding) continue;
    if (type !== undefined && !(type.kind === 'tensor' && isFloat(type.dtype)))
      say(`an encoding writes real numbers, but the type is ${printType(type)}`);
    checkNumbers(encoding, say);
    checkExtents(encoding, type?.kind === 'tensor' ? type.shape : undefined, say);
  }
}

function checkPayload({ payload, encoding, data }: Value, say: (message: string) => void): void {
  if (!encoding || !data) say('a payload needs a constant with an encoding');
  else if (payload!.dtype !== encoding.dtype || String(payload!.shape) !== String(data.shape))
    say(`the payload is ${payload!.dtype}[${payload!.shape}], not ${encoding.dtype}[${data.shape}]`);
}

/** What can be said of an encoding without its value. */
function checkNumbers(encoding: Encoding, say: (message: string) => void): void {
  const { dtype, scale, zeroPoint, blockScale } = encoding;
  if (scale.length === 0 || !scale.every((entry) => Number.isFinite(entry) && entry > 0))
    say('scales must be positive numbers');
  if (zeroPoint) {
    const [low, high] = integerRange(dtype);
    if (zeroPoint.length !== 1 && zeroPoint.length !== scale.length)
      say(`${zeroPoint.length} zero points for ${scale.length} scales`);
    const outside = zeroPoint.find((zero) => zero < low || zero > high);
    if (outside !== undefined) say(`the zero point ${outside} is outside ${dtype}`);
  }
  const badScale = blockScale?.find((entry) => entry < 1 || entry > 15);
  if (badScale !== undefined) say(`the block scale ${badScale} is outside 1..15`);
  if (encoding.block !== undefined && encoding.axis === undefined) say('blocks need an axis');
  if (blockScale && encoding.block === undefined) say('block scales need a block length');
  if (blockScale && encoding.channelAxis === undefined) say('block scales need a channel axis');
  if (!blockScale && encoding.channelAxis !== undefined) say('a channel axis belongs to block scales');
}

/** Counts of scales against the shape; dimensions that are not numbers yet, or not known, are not checked. */
function checkExtents(encoding: Encoding, shape: Shape | undefined, say: (message: string) => void): void {
  const { axis, block, scale, channelAxis, blockScale } = encoding;
  const expect = (what: string, found: number, wanted: number | undefined): void => {
    if (wanted !== undefined && found !== wanted) say(`${found} ${what}, but its shape needs ${wanted}`);
  };
  const form = encodingForm(encoding);
  if (form === 'tensor') {
    expect('scales', scale.length, 1);
    return;
  }
  if (!shape) return;
  for (const at of [axis!, channelAxis ?? 0])
    if (at < 0 || at >= shape.length) {
      say(`axis ${at} is outside the shape [${shape}]`);
      return;
    }
  const extent = shape[axis!];
  if (form === 'channel') {
    expect('scales', scale.length, typeof extent === 'number' ? extent : undefined);
    return;
  }
  if (typeof extent === 'number' && (block! < 1 || extent % block! !== 0)) {
    say(`blocks of ${block} do not divide axis ${axis} of [${shape}]`);
    return;
  }
  const blocks = shape.reduce<number | undefined>(
    (count, dim, at) =>
      count === undefined || typeof dim !== 'number' ? undefined : count * (at === axis ? dim / block! : dim),
    1,
  );
  if (form === 'block') {
    expect('scales', scale.length, blocks);
    return;
  }
  if (channelAxis === axis) say('the channel axis is the axis that is cut into blocks');
  const channels = shape[channelAxis!];
  expect('scales', scale.length, typeof channels === 'number' ? channels : undefined);
  expect('block scales', blockScale!.length, blocks);
}

/** Integer ports of a graph. */
export function checkPorts(graph: Graph, report: Report): void {
  for (const value of graph.quantizedPorts) {
    if (!graph.inputs.includes(value) && !graph.isOutput(value))
      report(value.name, 'is a quantized port but neither input nor output');
    if (!value.encoding) report(value.name, 'is a quantized port without an encoding');
  }
}

export function checkStates(module: Module, report: Report): void {
  for (const graph of module.graphs) {
    for (const [name, { input, output }] of graph.states) {
      const state = module.states.get(name);
      const where = `@${graph.name} state ${name}`;
      if (!state) {
        report(where, 'is not declared in the module');
        continue;
      }
      if (!graph.inputs.includes(input)) report(where, `comes in as ${input.name}, which is no input`);
      if (!graph.isOutput(output)) report(where, `leaves as ${output.name}, which is no output`);
      for (const value of [input, output])
        if (value.type !== undefined && !(value.type.kind === 'tensor' && value.type.dtype === state.dtype))
          report(where, `holds ${state.dtype}, but ${value.name} is ${printType(value.type)}`);
      if (state.kind === 'replace' && input.type && output.type && printType(input.type) !== printType(output.type))
        report(where, `is replaced, but ${printType(input.type)} comes in and ${printType(output.type)} leaves`);
    }
  }
}

export function checkTieGroups(module: Module, report: Report): void {
  for (const group of module.tieGroups) {
    const values = tiedValues(module, group, report);
    const first = values[0]?.encoding;
    for (const { name, encoding } of values)
      if (!equalEncodings(first, encoding))
        report(name, `has another encoding than ${values[0]!.name}, which it is tied to`);
  }
}

/** Two encodings that are the same, or two that are absent. */
function equalEncodings(a: Encoding | undefined, b: Encoding | undefined): boolean {
  return a && b ? sameEncoding(a, b) : a === b;
}

/** The values of a tie group in all graphs; a name that no graph knows is reported. */
function tiedValues(module: Module, group: readonly string[], report: Report): Value[] {
  return group.flatMap((name) => {
    const found = module.graphs.flatMap((graph) => graph.find(name) ?? []);
    if (found.length === 0) report(name, 'is in a tie group but in no graph');
    return found;
  });
}

export function checkQuantized(module: Module, report: Report): void {
  for (const group of module.tieGroups)
    for (const { name, encoding } of tiedValues(module, group, () => undefined))
      if (!encoding) report(name, 'is tied but has no encoding');
  for (const graph of module.graphs) {
    for (const [name, { input, output }] of graph.states) {
      if (!equalEncodings(input.encoding, output.encoding))
        report(`@${graph.name} state ${name}`, `${input.name} and ${output.name} have different encodings`);
    }
  }
}
