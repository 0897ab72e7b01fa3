// A picture that is asked for again and again while somebody looks, and given back when nobody does.

export interface Asking {
  /** Where the next one is; "" when there is nothing to ask for now. */
  next: () => string;
  againMs: number;
  /** Until it is asked again where there is none. */
  noneMs: number;
}

export class PolledPicture<Words> {
  shown = $state.raw<({ url: string } & Words) | null>(null);

  /** `words`: what is to be said about a picture, from the headers that it came with. */
  constructor(private readonly words: (headers: Headers) => Words) {}

  /** Ask until the function that is returned is called. */
  follow({ next, againMs, noneMs }: Asking): () => void {
    const ended = new AbortController();
    let timer = 0;
    const turn = async (): Promise<void> => {
      let wait = againMs;
      const from = document.hidden ? "" : next();
      if (from !== "") {
        try {
          const answer = await fetch(from, { signal: ended.signal });
          if (answer.status === 200) {
            const words = this.words(answer.headers);
            this.show({ url: URL.createObjectURL(await answer.blob()), ...words });
          } else {
            this.show(null);
            wait = noneMs;
          }
        } catch {
          // What is away is said by others; the last picture tells its age.
        }
      }
      if (!ended.signal.aborted) timer = window.setTimeout(() => void turn(), wait);
    };
    void turn();
    return () => {
      ended.abort();
      window.clearTimeout(timer);
      this.show(null);
    };
  }

  private show(next: typeof this.shown): void {
    if (this.shown !== null) URL.revokeObjectURL(this.shown.url);
    this.shown = next;
  }
}
