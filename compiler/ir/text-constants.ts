import type { DType } from './dtype.ts';
import { type Encoding, isEncodingDType } from './encoding.ts';
import { elementCount, type Tensor } from './tensor.ts';
import {
  type Distribution,
  filledTensor,
  type Literal,
  randomTensor,
  tensorOfBytes,
  tensorOfLiterals,
} from './text-data.ts';
import type { TokenReader } from './text-tokens.ts';

/**
 * Reads the data of a constant, after `const` or `tensor <type>`: a scalar, `[elements]`, `fill x`, `rand(seed, ...)`,
 * `raw "hex"` or `#digest`.
 * @throws IR101 when the data does not fit the type
 * @throws IR103 when only a digest is given and `resolve` does not know it
 */
export function readConstant(
  read: TokenReader,
  dtype: DType,
  shape: readonly number[],
  resolve: (digest: string) => Tensor | undefined,
): Tensor {
  const start = read.next;
  const checked = (tensor: Tensor | { readonly problem: string }): Tensor => {
    if ('problem' in tensor) throw read.problem(tensor.problem, start);
    return tensor;
  };
  if (read.is('digest')) {
    const { text } = read.take();
    const tensor = resolve(text);
    if (!tensor) throw read.missing(`the data of #${text} is not in the text`, start);
    if (tensor.dtype !== dtype || String(tensor.shape) !== String(shape))
      throw read.problem(`#${text} is ${tensor.dtype}[${tensor.shape}], not ${dtype}[${shape}]`, start);
    return tensor;
  }
  if (read.accept('word', 'fill')) return checked(filledTensor(dtype, shape, read.literal()));
  if (read.accept('word', 'raw')) return checked(tensorOfBytes(dtype, shape, read.bytes()));
  if (read.accept('word', 'rand')) {
    read.expect('mark', '(');
    const seed = read.integer();
    read.expect('mark', ',');
    const distribution = readDistribution(read);
    read.expect('mark', ')');
    return checked(randomTensor(dtype, shape, seed, distribution));
  }
  if (read.is('mark', '['))
    return checked(
      tensorOfLiterals(
        dtype,
        shape,
        read.list('[', ']', () => read.literal()),
      ),
    );
  const scalar = read.literal();
  if (elementCount(shape) !== 1) throw read.problem(`one element for the shape [${shape}]: use [...] or fill`, start);
  return checked(tensorOfLiterals(dtype, shape, [scalar]));
}

function readDistribution(read: TokenReader): Distribution {
  const kind = read.expect('word');
  if (kind.text === 'normal') return { kind: 'normal', deviation: read.number() };
  if (kind.text !== 'uniform' && kind.text !== 'int') throw read.problem('random data is normal, uniform or int', kind);
  const from = read.number();
  return { kind: kind.text, from, to: read.number() };
}

/**
 * Reads `(u8, axis 1, block 32, channel 0, scale ..., blockscale ..., zero ...)` after `q`.
 * @throws IR101 on an unknown part or type
 * @throws IR103 when numbers are given by their digest only
 */
export function readEncoding(read: TokenReader): Encoding {
  const start = read.next;
  let dtype: Encoding['dtype'] | undefined;
  const parts: Partial<Record<'axis' | 'block' | 'channelAxis', number>> = {};
  let scale: Literal[] | undefined;
  let zero: Literal[] | undefined;
  let blockScale: Literal[] | undefined;
  read.list('(', ')', () => {
    const word = read.expect('word');
    if (dtype === undefined) {
      if (!isEncodingDType(word.text as DType)) throw read.problem(`${word.text} is not an integer type`, word);
      dtype = word.text as Encoding['dtype'];
    } else if (word.text === 'axis' || word.text === 'block') parts[word.text] = read.integer();
    else if (word.text === 'channel') parts.channelAxis = read.integer();
    else if (word.text === 'scale') scale = readNumbers(read);
    else if (word.text === 'zero') zero = readNumbers(read);
    else if (word.text === 'blockscale') blockScale = readNumbers(read);
    else throw read.problem(`unknown part ${word.text} of an encoding`, word);
  });
  if (dtype === undefined || scale === undefined) throw read.problem('an encoding needs a type and a scale', start);
  return {
    dtype,
    scale: Float32Array.from(scale, Number),
    ...parts,
    ...(zero === undefined ? {} : { zeroPoint: Int32Array.from(zero, Number) }),
    ...(blockScale === undefined ? {} : { blockScale: Uint8Array.from(blockScale, Number) }),
  };
}

function readNumbers(read: TokenReader): Literal[] {
  if (read.is('digest')) throw read.missing(`the numbers of #${read.next.text} are not in the text`, read.next);
  return read.is('mark', '[') ? read.list('[', ']', () => read.literal()) : [read.literal()];
}
