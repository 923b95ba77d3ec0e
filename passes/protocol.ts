import type { DecoderConfig } from '../compiler/import/huggingface/config.ts';
import { inverseFrequencies } from '../compiler/import/huggingface/rope.ts';
import type { DecoderProtocol } from '../compiler/runtime/decoder-session.ts';
import type { IoContract } from './io-contract.ts';

/** The host's side of a contract for one decoder and cache size: what the manifest stores and sessions read. */
export function makeProtocol(config: DecoderConfig, contract: IoContract, cache: number): DecoderProtocol {
  const layers = Array.from({ length: config.layers }, (_, layer) => layer);
  const { names } = contract;
  return {
    contract: contract.name,
    layers: config.layers,
    headDim: config.headDim,
    vocabSize: config.vocabSize,
    cache,
    rotary: contract.rotary,
    frequencies: [...inverseFrequencies(config.rope, config.headDim, cache)],
    names: {
      tokens: names.tokens,
      mask: names.mask,
      ...(names.positions ? { positions: names.positions } : {}),
      ...(names.cos ? { cos: names.cos } : {}),
      ...(names.sin ? { sin: names.sin } : {}),
      ...(names.rope ? { rope: names.rope } : {}),
      logits: names.logits,
      pastKey: layers.map(names.pastKey),
      pastValue: layers.map(names.pastValue),
      newKey: layers.map(names.newKey),
      newValue: layers.map(names.newValue),
    },
    ...(contract.update && contract.update !== 'host' ? { update: contract.update } : {}),
    ...(contract.masked === undefined ? {} : { masked: contract.masked }),
    keyTimeAxis: contract.key.timeAxis,
    valueTimeAxis: contract.value.timeAxis,
  };
}
