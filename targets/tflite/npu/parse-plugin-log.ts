/** Why a plugin left operators to the CPU, by the name of an operator's first output. */
export type Refusals = ReadonlyMap<string, string>;

const PORT = /^ {4}\[\d+\] name="([^"]*)"(.*)$/;
const REFUSED = /^LiteRT Op #\d+ '/;
const INVALID = /^QNN op validation failed: '([^']*)' \(type=(\w+)(?:, operation=(\w+))?\)/;
/** The vendor's own words on a node that its validation refuses; the rest of the line repeats the node. */
const SAID = /<E> (.* in the node '([^']*)'\..*)$/;

const TYPES: Readonly<Record<string, string>> = {
  FLOAT_32: 'f32',
  FLOAT_16: 'f16',
  SFIXED_POINT_4: 'i4',
  SFIXED_POINT_8: 'i8',
  SFIXED_POINT_16: 'i16',
  SFIXED_POINT_32: 'i32',
  UFIXED_POINT_8: 'u8',
  UFIXED_POINT_16: 'u16',
  INT_32: 'i32',
  INT_64: 'i64',
};

/**
 * Reads the reasons out of what Qualcomm's plugin logs: a block of the vendor's validation, then one that names the operator
 * it belongs to, each with the tensors below it. A refusal without a validation has no form in the plugin at all.
 *
 *     QNN op validation failed: 'DepthWiseConv2d_5' (type=DepthWiseConv2d)
 *       Inputs:
 *         [0] name="0_litert_8" dtype=QNN_DATATYPE_SFIXED_POINT_16 dims=[1,120,160,16] ...
 *     LiteRT Op #4 'DepthwiseConv2d' (code=4) is not supported in Qualcomm Compiler.
 *       Outputs:
 *         [0] name="serving_default/250"  tensor_idx=11
 */
export function parseRefusals(stderr: string, stdout: string): Refusals {
  const said = new Map<string, string>();
  for (const line of stdout.split('\n')) {
    const [, words, node] = SAID.exec(line) ?? [];
    if (words && node && !said.has(node)) said.set(node, words.replace(` in the node '${node}'`, ''));
  }
  const refusals = new Map<string, string>();
  let reason: string | undefined;
  let block: 'validation' | 'operator' | undefined;
  let side = '';
  let types: string[] = [];
  for (const line of stderr.split('\n')) {
    const invalid = INVALID.exec(line);
    if (invalid) {
      const [, node = '', type = '', operation = type] = invalid;
      reason = said.get(node) ?? `the HTP has no ${operation} of these types`;
      types = [];
      block = 'validation';
    } else if (REFUSED.test(line)) block = 'operator';
    else if (line === '  Inputs:' || line === '  Outputs:') side = line.trim();
    else {
      const [, name, rest = ''] = PORT.exec(line) ?? [];
      if (name === undefined) continue;
      if (block === 'validation' && side === 'Inputs:') types.push(typeOf(rest));
      if (block !== 'operator' || side !== 'Outputs:' || refusals.has(name)) continue;
      refusals.set(name, reason ? `${reason} (inputs ${types.join(', ')})` : 'the plugin has no form for it');
      reason = undefined;
    }
  }
  return refusals;
}

function typeOf(port: string): string {
  const [, type = '?', dims = ''] = /dtype=QNN_DATATYPE_(\w+) dims=\[([^\]]*)\]/.exec(port) ?? [];
  return `${TYPES[type] ?? type.toLowerCase()}[${dims}]`;
}

/** Whether the driver says of every subgraph that the plugin selected no operator of it. */
export function selectedNothing(stderr: string): boolean {
  const counts = [...stderr.matchAll(/Partitioned subgraph<\d+>, selected (\d+) ops/g)].map(([, count]) =>
    Number(count),
  );
  return counts.length > 0 && counts.every((count) => count === 0);
}

/** The last errors that LiteRT logged, in order, without its places in the source and its own bookkeeping. */
export function parseErrors(stderr: string): string[] {
  const errors = [...stderr.matchAll(/^ERROR: \[\S+\] (.*(?:\n(?!INFO|WARNING|ERROR|\[LITERT).*)*)/gm)].map(
    ([, text]) => text!.trim(),
  );
  return errors.filter((text) => !/^(ERROR: \[|QNN op validation failed|LiteRT Op #|$)/.test(text));
}
